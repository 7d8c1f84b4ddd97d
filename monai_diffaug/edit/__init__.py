"""One edit from beginning to end: open -> cut -> denoise -> decode -> put back -> record.

    open      ``request.open_request``   check image, mask, label; find plane, window and touched slices
    cut       ``stack.cut_patch``        a square around each lesion, resampled to the model's size
    denoise   ``denoise.denoise``        encode, noise, one sampling loop for the slices of all requests
    decode    ``decode.decode``          pictures from latents
    put back  ``stack.put_back``         composite under the soft mask; all other voxels stay bit-identical
    record    ``request.finish_request`` label, record, type and meta data of the input

``DiffusionLocalInpaint`` in ``transforms/local_inpaint.py`` calls these steps. The other files: ``options`` and ``validation_options``
(what a user sets), ``signature`` (their names), ``slice_batches`` (memory), ``screening`` (reject a candidate by its latents).

Code enters here only if every edit runs through it; dictionary keys belong to ``transforms``.
"""
