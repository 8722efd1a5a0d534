"""The sources of data that a run can choose from."""

from jaxpretrain.data.images.images import ImageData
from jaxpretrain.data.text.mixture import Mixture
from jaxpretrain.data.text.text import TextData

DataChoice = TextData | Mixture | ImageData
"""The configs of data. A new source is one file and one name here."""
