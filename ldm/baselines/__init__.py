"""Rival families of generative models: one file each, behind one interface (`family.Family`)."""
