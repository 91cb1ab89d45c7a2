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
_WAIT = "The job is tried again by itself. "
_PEER = (
    "The result itself is in the archive. Mend the destination or its table in segnode.toml, "
    "then send it on again."
)
_PEER_AWAY = (
    "The result itself is in the archive. See whether the destination runs and takes us, then "
    "send it on again."
)
_WORKER = (
    "See the log of that worker: often the machine had not enough memory. Where other series work "
    "and this one takes its worker down each time, report it."
)
_MEMORY = "Give the worker more memory or a larger GPU, or start it with fewer children."

_OF_SERIES = (
    *("unsuitable-series", "modality", "multi-frame", "sop-class", "no-pixel-data", "photometric"),
    *("localizer", "not-hounsfield", "rescale", "transfer-syntax", "gantry-tilt", "missing-slice"),
    *("shifted-slices", "wide-gap", "duplicate-position", "too-few-slices", "several-stacks"),
    *("mixed-series", "too-large", "too-thin", "no-images", "geometry"),
)
_OF_IMAGES = (
    *("broken-instance", "not-dicom", "too-complex", "bad-uid", "bad-attribute", "frame-groups"),
    *("undecodable", "pixel-format", "pixel-frames", "pixel-size", "truncated"),
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
_OF_PEERS_AWAY = ("peer-unavailable", "peer-busy", "sender-lost")

_CURES = {
    **dict.fromkeys(_OF_SERIES, _ANOTHER_SERIES),
    **dict.fromkeys(_OF_IMAGES, _RESEND),
    **dict.fromkeys(_OF_ROUTES, _MEND_ROUTE),
    **dict.fromkeys(_OF_MODELS, _MODEL),
    **dict.fromkeys(_OF_PEERS, _PEER),
    **dict.fromkeys(_OF_PEERS_AWAY, _PEER_AWAY),
    **dict.fromkeys(("proof-failed", "internal"), _OURS),
    **dict.fromkeys(("worker-lost", "model-process-died"), _WORKER),
    "archive-unavailable": (
        "See whether Orthanc runs and has room on its disk; the first page says how it is."
    ),
    "archive-address": (
        "Give the workers the address of the archive's DICOMweb root in SEGNODE_ARCHIVE_URL."
    ),
    "archive-certificate": (
        "Give the workers the archive's certificate in SEGNODE_ARCHIVE_CERTIFICATE."
    ),
    "archive-password": (
        "Give the workers a user that the archive knows, and that may store there, in "
        "SEGNODE_ARCHIVE_USER and SEGNODE_ARCHIVE_PASSWORD."
    ),
    "ledger-unavailable": "See whether the database runs and has room.",
    "series-changed": (
        "Images came or went while the job was made. If more came, the new content has a job of "
        "its own already: see the study's page. If some were deleted, send them again."
    ),
    "images-changed": (
        "Images were replaced by others under the same UIDs, which DICOM forbids, and this result "
        "is of the first ones. See which are right. If it is those of now, withdraw the result and "
        "make it anew."
    ),
    "prior-missing": "See the job that it builds on: this one needs its result.",
    "prior-withheld": (
        "The model it builds on left the segment out on purpose, so there is nothing to build on. "
        "Trying again gives the same; that job's page says why."
    ),
    "model-busy": (
        "Jobs come faster than the model works: add a worker with a GPU, or move routes that can "
        "wait to background."
    ),
    "model-needs-gpu": "Start a worker on a machine with a GPU for this lane, then retry.",
    "model-time-limit": (
        "The model ran longer than its card allows and was stopped. See whether its GPU is there "
        "and free; with a series of unusual size, retry once when the machine is idle."
    ),
    "model-load-time": (
        "See whether the disk of the worker's models is slow or full of other work, then retry; a "
        "model that waits for a network at loading can never run."
    ),
    "stage-time-limit": "See whether disk and archive are slow, by the stages below; then retry.",
    "model-untrusted": (
        "The model's files were changed since an administrator added them. Compare with where they "
        "came from, and add them again with segnode models add; then retry."
    ),
    "extra-missing": "Install the extra that the sentence names on the worker, then retry.",
    "unknown-model": "Start a worker that has this model; the page Models says which are there.",
    **dict.fromkeys(("out-of-memory", "memory-exhausted"), _MEMORY),
    "spool-full": "Make room on the worker's disk; nothing is stored half.",
    "store-refused": (
        "See Orthanc's log for why it did not take the result: storage, its size limit, a plugin. "
        "Mend that, then retry."
    ),
    "uid-collision": (
        "The archive holds other content under the UID of this result. See what stored it there; "
        "delete it if it is wrong, then retry."
    ),
    "object-missing": (
        "The archive lacks what is to be sent on: segnode verify says what. Send such images "
        "again; a result that is gone is made anew once it is withdrawn."
    ),
}

_UNKNOWN = "See the worker's log for this job's key."


def cure_of(code: str, *, again: bool = False) -> str:
    """Return what to do about an error, in some sentences.

    Parameters
    ----------
    again
        Whether the job is tried again by itself.
    """
    cure = _CURES.get(code, _UNKNOWN)
    return _WAIT + cure if again else cure
