"""Everything that segnode raises on purpose, in one tree.

The first fork is the one the queue asks about: would trying again help?

    SegnodeError
    ├── TransientError                 trying again may help
    │   ├── ArchiveUnavailable         no answer, or an answer that says "later"
    │   ├── SeriesChanged              the archive gave other images than the job was made for
    │   ├── PriorMissing               the result on which the job builds is not there now
    │   ├── BrokerUnavailable          Redis does not take the ring
    │   ├── LedgerUnavailable          the database does not answer
    │   ├── ModelProcessDied           the model process ended under a job
    │   ├── ModelBusy                  the job's turn at the model did not come
    │   ├── SpoolFull                  the disk does not take the finished result
    │   ├── PeerUnavailable            a destination gives no answer, or one that says "later"
    │   ├── ObjectMissing              the archive lacks what is to be sent on
    │   ├── NotTold                    mail server or webhook did not take an alert
    │   └── OutOfMemory                the model may do with less on the CPU
    └── PermanentError                 trying again gives the same
        ├── SettingsError              a settings file or variable is wrong
        ├── LedgerSchemaError          the ledger is older or newer than the program
        ├── CardError                  a model card lacks something
        ├── UnknownModel               no worker has announced the model
        ├── UnsuitableSeries           the images cannot carry this model
        ├── BrokenInstance             an image does not parse or decode
        ├── ImagesChanged              other images stand under UIDs that have their result
        ├── ModelUntrusted             a model's files are not those that were added
        ├── ModelFailed                the model raised, or gave what is no result
        ├── ModelTimeLimit             the model ran past the limit on its card
        ├── StageTimeLimit             another stage ran past its limit
        ├── MemoryExhausted            not enough memory, nor on the CPU
        ├── ProofFailed                the encoded result differs from the labels
        ├── StoreRefused               the archive did not take the result
        ├── UidCollision               the archive holds other content under our UID
        ├── PeerRefused                a destination did not take what was sent
        └── SetupError                 a program, a port or a folder is not as needed
"""

from __future__ import annotations


class SegnodeError(Exception):
    """An error with a stable `code` and one sentence for people.

    The sentence holds the value that was wrong and what to do, and never a patient's name.
    """

    code = "error"

    def __init__(self, sentence: str, *, code: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        if code is not None:
            self.code = code


class TransientError(SegnodeError):
    """Trying again may help."""

    code = "transient"
    patience_s = float("inf")
    """How long after the first try this may still help; `Limits.give_up_h` holds for all."""


class PermanentError(SegnodeError):
    """Trying again gives the same."""

    code = "permanent"


class ArchiveUnavailable(TransientError):
    code = "archive-unavailable"


class BrokerUnavailable(TransientError):
    code = "broker-unavailable"


class LedgerUnavailable(TransientError):
    code = "ledger-unavailable"


class ModelProcessDied(TransientError):
    code = "model-process-died"


class ModelBusy(TransientError):
    code = "model-busy"


class SpoolFull(TransientError):
    code = "spool-full"


class PeerUnavailable(TransientError):
    """A destination cannot be sent to now; `code` names the reason where it is known.

    ``peer-rejected``: it refuses the association. ``peer-password``: it refuses our user.
    ``peer-address``: something else answers there. ``peer-certificate``: it is not trusted.
    ``peer-busy``: it lacks the resources. ``peer-settings``: its certificate or login is not as
    needed here. ``peer-unavailable``: anything else.
    """

    code = "peer-unavailable"


class OutOfMemory(TransientError):
    code = "out-of-memory"


class SettingsError(PermanentError):
    code = "settings"


class LedgerSchemaError(PermanentError):
    code = "ledger-schema"


class CardError(PermanentError):
    code = "card"


class UnknownModel(PermanentError):
    code = "unknown-model"


class UnsuitableSeries(PermanentError):
    """The images cannot carry this model; `code` names the reason, `missing-slice` say."""

    code = "unsuitable-series"


class BrokenInstance(PermanentError):
    code = "broken-instance"


class SeriesChanged(TransientError):
    code = "series-changed"
    patience_s = 2 * 3600.0
    """By then the new content has its job: intake reads the whole archive every hour."""


class PriorMissing(TransientError):
    code = "prior-missing"
    patience_s = 2 * 3600.0


class ObjectMissing(TransientError):
    code = "object-missing"


class NotTold(TransientError):
    """An alert did not reach anybody; `code` names the reason where it is known.

    ``mail-certificate``, ``webhook-certificate``: it is not trusted. ``mail-password``: the mail
    server refuses our user. ``mail-refused``, ``webhook-refused``: by its answer.
    ``mail-unreachable``, ``webhook-unreachable``: anything else.
    """

    code = "not-told"


class ImagesChanged(PermanentError):
    code = "images-changed"


class ModelFailed(PermanentError):
    """The model gave no result; `code` names the reason where it is known.

    ``model-weights``: they cannot be read. ``model-mismatch``: network, card and weights do not fit
    each other. ``model-channels``: the network takes another number of channels. ``model-output``:
    what it gave is no segmentation, NaN say. ``model-strange-label``: a label that the card does
    not name. ``model-failed``: it raised.
    """

    code = "model-failed"


class ModelUntrusted(PermanentError):
    """A model's files are not those that an administrator added, or nothing here can hold it."""

    code = "model-untrusted"


class ModelTimeLimit(PermanentError):
    code = "model-time-limit"


class StageTimeLimit(PermanentError):
    code = "stage-time-limit"


class MemoryExhausted(PermanentError):
    code = "memory-exhausted"


class ProofFailed(PermanentError):
    code = "proof-failed"


class StoreRefused(PermanentError):
    code = "store-refused"


class UidCollision(PermanentError):
    code = "uid-collision"


class PeerRefused(PermanentError):
    """A destination did not take what was sent; `code` names the reason.

    ``sop-class-refused``: no presentation context for it. ``object-refused``: by its answer.
    """

    code = "object-refused"


class SetupError(PermanentError):
    code = "setup"
