"""The outside world's files: MRC images and volumes, RELION's STAR files."""
