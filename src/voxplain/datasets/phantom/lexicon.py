"""The words of phantom impressions: parts of speech, names of findings, degrees, places and sentences.

Everything an impression can say is spelled in this file, so `all_words` is complete by construction. Sentences are
written as plain words with blanks between them; `tagged` looks up each word's part of speech (Universal Dependencies
names, except that forms of "be" count as VERB), or takes it from the word itself: "left/NOUN".
"""

from dataclasses import dataclass
from functools import cache

PARTS = {
    "ADJ": "acute airspace bilateral cardiac cardiopulmonary clear consolidative emphysematous enlarged extensive "
    "focal ground-glass intact large left left-sided lower main massive middle midline mild minimal moderate normal "
    "osseous patent pericardial pleural present pulmonary reticular right right-sided severe small unremarkable upper "
    "visualized",
    "ADP": "in of on with within without",
    "ADV": "mildly moderately severely",
    "CCONJ": "and or",
    "DET": "a an both no the",
    "NOUN": "abnormality air airways aorta atelectasis bronchi caliber cardiomegaly change changes chest collapse "
    "consolidation contour effusion effusions emphysema enlargement evidence fibrosis finding findings fluid ggo "
    "heart hydrothorax liver lobe loss lung lungs mass masses mediastinum mm nodule nodules opacification "
    "opacities opacity pneumothoraces pneumothorax reticulation ribs sides silhouette size spine study trachea "
    "vessels volume",
    "NUM": "two 2",
    "PART": "not",
    "PRON": "there",
    "PUNCT": ". ,",
    "VERB": "are demonstrates identified is measure measures noted seen shows",
}
POS = {word: part for part, words in PARTS.items() for word in words.split()}
MILLIMETERS = range(15, 41)  # sizes that phantoms have, and so texts may give

Words = tuple[tuple[str, str], ...]  # (word, part of speech)


@cache
def tagged(text: str) -> Words:
    """The words of a text with their parts of speech; a word that is not in the lexicon raises ValueError."""
    pairs = []
    for word in text.split():
        bare, _, part = word.partition("/")
        known = POS.get(bare.casefold()) or ("NUM" if bare.isdecimal() and int(bare) in MILLIMETERS else None)
        if known is None:
            raise ValueError(f"{bare!r} is not a word of the phantom grammar: add it to lexicon.PARTS")
        pairs.append((bare, part or known))
    return tuple(pairs)


def all_words() -> list[str]:
    """Every word that an impression can hold, in lower case, sorted; sizes in mm are words too, signs are not."""
    return sorted({word for word in POS if word not in ".,"} | {str(size) for size in MILLIMETERS})


@dataclass(frozen=True)
class Noun:
    """A name of a finding: singular, plural (None: it cannot be counted), and which `DEGREES` go with it."""

    one: str
    many: str | None = None
    degrees: tuple[str, ...] = ("size",)

    @property
    def deniable(self) -> bool:
        """Whether "no" may stand before it; "no enlarged heart" is not said."""
        return self.degrees != ("adverb",) and self.one != self.many


BOTH = ("grade", "size")
NOUNS: dict[str, tuple[Noun, ...]] = {
    "consolidation": (
        Noun("consolidation", None, BOTH),
        Noun("airspace consolidation", None, BOTH),
        Noun("focal consolidation", None, BOTH),
        Noun("consolidative opacity", "consolidative opacities"),
    ),
    "ground_glass": (
        Noun("ground-glass opacity", "ground-glass opacities", BOTH),
        Noun("ground-glass opacification", None, BOTH),
        Noun("GGO", None, BOTH),
    ),
    "nodule": (Noun("nodule", "nodules"), Noun("pulmonary nodule", "pulmonary nodules")),
    "mass": (Noun("mass", "masses"), Noun("pulmonary mass", "pulmonary masses")),
    "effusion": (
        Noun("pleural effusion", "pleural effusions"),
        Noun("pleural fluid"),
        Noun("hydrothorax"),
        Noun("effusion", "effusions"),  # last, since it is left out beside a pericardial effusion
    ),
    "pneumothorax": (Noun("pneumothorax", "pneumothoraces"), Noun("pleural air")),
    "cardiomegaly": (
        Noun("cardiomegaly", None, ("grade",)),
        Noun("cardiac enlargement", None, ("grade",)),
        Noun("enlarged heart", None, ("adverb",)),
        Noun("enlarged cardiac silhouette", None, ("adverb",)),
    ),
    "atelectasis": (
        Noun("atelectasis", None, ("grade",)),
        Noun("volume loss", None, ("grade",)),
        Noun("collapse", None, ("grade",)),
    ),
    "emphysema": (
        Noun("emphysema", None, ("grade",)),
        Noun("emphysematous change", "emphysematous changes", ("grade",)),
    ),
    "pericardial_effusion": (Noun("pericardial effusion", "pericardial effusions"), Noun("pericardial fluid")),
    "fibrosis": (
        Noun("fibrosis", None, ("grade",)),
        Noun("pulmonary fibrosis", None, ("grade",)),
        Noun("reticulation", None, ("grade",)),
        Noun("reticular opacities", "reticular opacities", ("grade",)),
    ),
}
ARTICLED = ("enlarged heart", "enlarged cardiac silhouette")  # take "a" though they have no plural here

DEGREES: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small",), "moderate": ("moderate",), "large": ("large", "large", "massive")},
    "grade": {
        "small": ("mild", "mild", "minimal"),
        "moderate": ("moderate",),
        "large": ("severe", "severe", "extensive"),
    },
    "adverb": {"small": ("mildly",), "moderate": ("moderately",), "large": ("severely",)},
}
SAME_DEGREE = {"mild": "small", "severe": "large"}
COUNTS = {2: ("two", "two", "2")}  # phantoms have at most two of a kind

BEFORE = {"side": ("{side}", "{side}-sided"), "bilateral": ("bilateral",), "lobe": ("{lobe}",)}
AFTER = {
    "side": ("in the {side} lung", "within the {side} lung", "on the {side}/NOUN"),
    "bilateral": ("in both lungs", "within both lungs", "on both sides"),
    "lobe": ("in the {lobe}", "in the {lobe}", "within the {lobe}", "of the {lobe}"),
}

SEEN = ("seen", "noted", "present", "identified")
SHOWS = ("shows", "demonstrates")
NORMAL = (
    "no acute abnormality .",
    "no acute findings .",
    "no acute cardiopulmonary abnormality .",
    "normal chest .",
    "unremarkable chest .",
    "normal study .",
)
LUNG = ("consolidation", "ground_glass", "nodule", "atelectasis", "emphysema", "fibrosis", "effusion", "pneumothorax")
LARGE = ("cardiomegaly",)
HEART = (*LARGE, "pericardial_effusion")
ORGANS: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = (  # per organ: sentences, and findings that refute them
    (
        ("the heart size is normal .", LARGE),
        ("the heart is normal in size .", LARGE),
        ("normal heart size .", LARGE),
        ("the cardiac silhouette is normal .", HEART),
        ("the heart is unremarkable .", HEART),
    ),
    (("the lungs are clear .", LUNG), ("both lungs are clear .", LUNG)),
    (
        ("the aorta is unremarkable .", ()),
        ("the aorta is normal in caliber .", ()),
        ("normal contour of the aorta .", ()),
    ),
    (
        ("the trachea is midline .", ()),
        ("the trachea and main bronchi are patent .", ()),
        ("the airways are patent .", ()),
    ),
    (("the visualized liver is unremarkable .", ()), ("the liver is normal .", ())),
    (("the spine is intact .", ()), ("the ribs are intact .", ()), ("no acute osseous abnormality .", ())),
    (("the pulmonary vessels are unremarkable .", ()),),
    (("the mediastinum is normal .", HEART),),
)
CLEAR_SIDE = ("the {side} lung is clear .", "{side} lung is clear .")
ORGAN_WORDS = {  # words that name an organ of `Case.organs`; longer ones first
    **{lobe: lobe for lobe in ("right upper lobe", "right middle lobe", "right lower lobe")},
    **{lobe: lobe for lobe in ("left upper lobe", "left lower lobe")},
    "trachea and main bronchi": "trachea",
    "cardiac silhouette": "heart",
    "pulmonary vessels": "vessels",
    "right lung": "right lung",
    "left lung": "left lung",
    "both lungs": "lungs",
    "lungs": "lungs",
    "airways": "trachea",
    **{name: name for name in ("heart", "aorta", "trachea", "liver", "spine", "ribs", "mediastinum")},
}
