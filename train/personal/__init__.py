"""Your own subject from a few photos: plan, class pictures, training, measures at every checkpoint, verdict, report."""
