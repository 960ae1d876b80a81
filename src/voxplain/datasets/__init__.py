"""Data sets: cases with images, texts and masks; a folder or file each, imported by name.

`phantom`  procedural chests with findings, exact masks and radiology-style impressions

Real data, each built from the user's own copy of the public files; nothing is downloaded and no pixel is copied:

`base`  the record that every set becomes, and the set itself with what was left out, by reason
`frames`  resize, crop and pad as values: image, boxes and masks go through the same one
`shapes`  boxes, polygons and run lengths to masks
`reading`  a record in, image and mask in one recorded frame out
`tables`  CSV files, zipped or not, and paths that have to be on the disk
`folder`  a plain CSV file; also the form that any set is written in
`labels`  the 14 labels of chest X-ray sets, and what becomes of -1
`mscxr`, `mimic_cxr`, `chexpert_plus`, `coco`  the sets themselves
`prompts`  COCO-Gen and Unreal-Gen: texts to generate from
`shared`  the small open sets that this project is developed on
`opening`  a set by its name
"""
