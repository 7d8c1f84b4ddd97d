"""Ready pipelines, each one function that returns a ``Compose`` to put after the loading transforms.

The four published systems (``mila_tmgdiff``, ``diffaug``, ``emit_diff``, ``medsoft_diffusion``), samples without a lesion (``controls``)
and lesions at another place (``relocate``). Each writes the items "mask" and "prompt" and the record of the edit; image and label need
other names (else ValueError).
"""

from monai_diffaug.presets.added_lesion import diffaug
from monai_diffaug.presets.lesion_free import controls
from monai_diffaug.presets.lesion_in_place import medsoft_diffusion, mila_tmgdiff
from monai_diffaug.presets.moved_lesion import relocate
from monai_diffaug.presets.whole_slice import emit_diff

__all__ = ["controls", "diffaug", "emit_diff", "medsoft_diffusion", "mila_tmgdiff", "relocate"]
