"""Phantom cohort: a seeded generator of a BIDS dataset with T1, amyloid and tau PET of simulated people.

A person starts from nilearn's MNI152 tissue maps. An affine sets head size and shape, a smooth random deformation
sets the folds, and age and disease set ventricles and cortical thickness. The T1 is a mix of the tissues. A PET is
regional uptake in grey matter plus white matter and fluid, at the resolution of a scanner. Each scan then gets a
random pose, voxel grid, noise and scale, as in scans of a real centre.

`people`: demography and latent causes. `anatomy`: tissue maps and deformation. `uptake`: tracer in the tissue.
`scanner`: T1 and PET acquisition. `truth`: planted effects and their tables. `dataset`: the files.

Spaces, all in mm, RAS+: *world* is the space of a scan's NIfTI affine; *person* has its origin in the centre
of the head; *MNI* is the template's. For a scan ``person = world_to_person @ world``; for a person ``mni =
person_to_mni @ person``. In a session, the point ``mni`` shows the template's anatomy at
``mni + displacement(deformation, mni)``. The displacement has no affine part over the brain (least squares), so
``person_to_mni @ world_to_person`` is the affine that a perfect registration finds.

The truth is in ``work/<profile>/truth/``, outside the dataset:

``truth.json``
    Settings; planted effects by tracer and region, as SUVR at scanner resolution: ``sex`` (F minus M), ``age`` (per
    decade), ``status`` (positive minus negative people of this cohort); ``stage_cut``.
``people.csv``
    One row per session: demography, latent causes, cortical summaries without noise, planted status. Status follows
    from disease alone: ``amyloid_positive`` is the latent cause, ``tau_positive`` a tau stage above ``stage_cut``. At
    that stage the meta-temporal SUVR of average anatomy, without age and sex effects, passes ``cohort.tau_cutoff``.
``regional.csv``
    One row per session, tracer and region: SUVR at scanner resolution, without noise. The region is a label of
    `resdm_suite.anatomy.regions` on the anatomy grid, moved into the person by the deformation.
``sub-*.json``
    One file per person: transforms, deformation, latent causes, files. Written last, so it marks a complete person.

The effects are large on purpose (see `PhantomConfig`): small ones cannot be learned in minutes.

``coupling`` sets how far atrophy predicts pathology. With that probability a person's neurodegeneration follows from
the person's disease, otherwise from the disease of an independent person. Its distribution is thus the same at
any coupling, and its covariance with load, stage and status is proportional to the coupling.
"""

from resdm_suite.cohorts.phantom.anatomy import displacement
from resdm_suite.cohorts.phantom.dataset import PhantomError, write_phantoms

__all__ = ["PhantomError", "displacement", "write_phantoms"]
