"""Data sets: cases with images, texts and masks; a folder or file each, imported by name.

`phantom`  procedural chests with findings, exact masks and radiology-style impressions
"""
