"""Files of other programs: MRC images and volumes, RELION's STAR files."""
