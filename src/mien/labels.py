"""The names of the expressions, and the order in which each data set and published checkpoint numbers them."""

EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
"""Every expression that mien speaks of, in the order of its own models."""

UNCERTAIN = "uncertain"
"""What stands in the place of an expression where a reader abstains."""

ORDERS: dict[str, tuple[str, ...]] = {
    # folders 1 to 7 of the basic set; POSTER++ and most checkpoints trained on it count the same way from 0
    "rafdb": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
    # APViT's checkpoints, whatever they were trained on
    "apvit7": ("anger", "disgust", "fear", "sadness", "happiness", "surprise", "neutral"),
    "apvit8": ("anger", "disgust", "fear", "sadness", "happiness", "surprise", "neutral", "contempt"),
    "affectnet7": EXPRESSIONS[:7],
    "affectnet8": EXPRESSIONS,
    # the ten columns of fer2013new.csv, without "unknown" and "NF"
    "ferplus": ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    # the column "emotion" of fer2013.csv
    "fer2013": ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    # the last word of a line of label.lst
    "expw": ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    # folders, by the alphabet
    "sfew": ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    # a line of a video's file, whose first line names them
    "affwild2": ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise"),
    # no faces: what a network of faces is compared by elsewhere
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
"""What class 0, 1, … means, by data set."""
