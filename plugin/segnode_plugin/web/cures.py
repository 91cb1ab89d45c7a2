"""What to do about each error, beside what its own sentence says."""

from __future__ import annotations

_RESEND = (
    "Send the series again from the scanner or the archive it came from; new images make a new "
    "job by themselves. Where the fault is in the images themselves, trying again gives the same."
)
_ANOTHER_SERIES = (
    "Nothing has to be mended here: the model cannot work on these images, and trying again gives "
    "the same. See on the study's page whether another series of it fits, and run the model there; "
    "where such series should not come to this model at all, exclude them in the route's where."
)
_MEND_ROUTE = (
    "Mend the route in segnode.toml (the page Routes says what is wrong with the file), then "
    "replay the study."
)
_MODEL = (
    "The model's files and its card do not fit each other, or the network gave what is no result. "
    "Ask who made the model; add the mended version with segnode models add, then replay the study."
)
_OURS = (
    "This is a fault of segnode and not of the images. Report it with the version and the job's "
    "key; nothing wrong was stored. Retry once: what depended on the moment may pass."
)
_SETTINGS = "Mend what the sentence names in segnode.toml or the environment, and start again."
_WAIT = "The job is tried again by itself. "
_GIVEN_UP = " It is not tried again by itself any more: retry it once the cause is gone."
_ARCHIVE = (
    _WAIT + "If it lasts, see whether Orthanc runs and has room on its disk; the first page says "
    "how it is."
)
_PEER = (
    "The result itself is in the archive. Mend the destination or its table in segnode.toml, "
    "then retry the delivery."
)
_PEER_LATER = (
    "The result itself is in the archive; sending it on is repeated by itself. If it lasts, see "
    "whether the destination runs and takes us."
)
_WORKER = (
    "See the log of that worker: often the machine had not enough memory. Where other series work, "
    "retry this one once; if it takes its worker down again, cancel it and report it."
)

_OF_SERIES = (
    *("unsuitable-series", "modality", "multi-frame", "sop-class", "no-pixel-data", "photometric"),
    *("localizer", "not-hounsfield", "rescale", "transfer-syntax", "gantry-tilt", "missing-slice"),
    *("shifted-slices", "wide-gap", "duplicate-position", "too-few-slices", "several-stacks"),
    *("mixed-series", "too-large", "too-thin", "no-images", "geometry"),
)
_OF_IMAGES = (
    *("broken-instance", "not-dicom", "too-complex", "bad-uid", "bad-attribute", "frame-groups"),
    *("undecodable", "pixel-format", "pixel-frames", "pixel-size", "truncated", "no-dicom"),
    "duplicate-instance",
)
_OF_ROUTES = ("wrong-roles", "wrong-prior", "other-frame", "apart")
_OF_MODELS = (
    *("card", "model-failed", "model-weights", "model-mismatch", "model-channels"),
    *("model-output", "model-strange-label"),
)
_OF_PEERS = (
    *("object-refused", "sop-class-refused", "destination-unknown", "peer-password"),
    *("peer-certificate", "peer-address", "peer-settings", "peer-rejected"),
)
_OF_PEERS_LATER = ("peer-unavailable", "peer-busy", "sender-lost", "object-missing")

_CURES = {
    **dict.fromkeys(_OF_SERIES, _ANOTHER_SERIES),
    **dict.fromkeys(_OF_IMAGES, _RESEND),
    **dict.fromkeys(_OF_ROUTES, _MEND_ROUTE),
    **dict.fromkeys(_OF_MODELS, _MODEL),
    **dict.fromkeys(_OF_PEERS, _PEER),
    **dict.fromkeys(_OF_PEERS_LATER, _PEER_LATER),
    **dict.fromkeys(("archive-unavailable", "archive-address"), _ARCHIVE),
    **dict.fromkeys(("proof-failed", "internal", "error"), _OURS),
    **dict.fromkeys(("settings", "setup", "folder", "no-folder"), _SETTINGS),
    **dict.fromkeys(("worker-lost", "model-process-died"), _WORKER),
    "transient": _WAIT + "If it lasts, see the worker's log.",
    "permanent": _OURS,
    "archive-certificate": (
        _WAIT + "Give the workers the archive's certificate in SEGNODE_ARCHIVE_CERTIFICATE."
    ),
    "picture-refused": "Bring worker and Orthanc's plugin to one version; results are not touched.",
    "broker-unavailable": _WAIT + "If it lasts, start Redis; no job is lost without it.",
    "ledger-unavailable": _WAIT + "If it lasts, see whether the database runs and has room.",
    "ledger-schema": "Bring all parts of the node to one version, and start Orthanc first.",
    "series-changed": (
        "Images came or went while the job was made. If more came, the new content has a job of "
        "its own already: see the study's page. If some were deleted, send them again, then retry."
    ),
    "images-changed": (
        "Images were replaced by others under the same UIDs, which DICOM forbids, and this result "
        "is of the first ones. See which are right. If it is those of now, withdraw the result and "
        "make it anew."
    ),
    "prior-missing": _WAIT + "See the job that it builds on: this one needs its result.",
    "prior-withheld": (
        "The model it builds on left the segment out on purpose, so there is nothing to build on. "
        "Trying again gives the same; that job's page says why."
    ),
    "model-busy": (
        _WAIT + "If it lasts, jobs come faster than the model works: add a worker with a GPU, or "
        "move routes that can wait to background."
    ),
    "model-needs-gpu": "Start a worker on a machine with a GPU for this lane, then retry.",
    "model-time-limit": (
        "The model ran longer than its card allows and was stopped. See whether its GPU is there "
        "and free; with a series of unusual size, retry once when the machine is idle."
    ),
    "stage-time-limit": "See whether disk and archive are slow, by the stages above; then retry.",
    "model-untrusted": (
        "The model's files were changed since an administrator added them. Compare with where they "
        "came from, and add them again with segnode models add; then retry."
    ),
    "extra-missing": "Install the extra that the sentence names on the worker, then retry.",
    "unknown-model": "Start a worker that has this model; the page Models says which are there.",
    "out-of-memory": _WAIT + "Next it takes the model's smaller memory profile.",
    "memory-exhausted": (
        "Give the worker more memory or a larger GPU, or start it with fewer children; then retry."
    ),
    "spool-full": _WAIT + "Make room on the worker's disk; nothing is stored half.",
    "store-refused": (
        "See Orthanc's log for why it did not take the result: storage, its size limit, a plugin. "
        "Mend that, then retry."
    ),
    "uid-collision": (
        "The archive holds other content under the UID of this result. See what stored it there; "
        "delete it if it is wrong, then retry."
    ),
    "not-told": (
        "Alerts could not be sent: see whether the mail server or webhook of [alerts] in "
        "segnode.toml answers. They are told once it does."
    ),
    "lease-lost": "Nothing has to be done: another worker has the job, or somebody ended it.",
}

_UNKNOWN = "See the worker's log for this job's key; retry once the cause is mended."


def cure_of(code: str, *, given_up: bool = False) -> str:
    """Return what to do about an error, in some sentences.

    Parameters
    ----------
    given_up
        Whether the job was tried again, and is not any more.
    """
    cure = _CURES.get(code, _UNKNOWN)
    return cure.removeprefix(_WAIT) + _GIVEN_UP if given_up else cure


def is_known(code: str) -> bool:
    """Return whether there is a cure of its own for a code."""
    return code in _CURES
