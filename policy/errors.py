"""What can go wrong with a policy, its weights or its statistics."""

from __future__ import annotations


class PolicyError(Exception):
    """Root of this package's errors."""


class BadSpec(PolicyError, ValueError):
    """A policy's description is not usable: a field is missing, unknown or out of range."""


class BadWeights(PolicyError, ValueError):
    """Weights that cannot be read, or that do not fit the policy they are meant for."""


class BadStatistics(PolicyError, ValueError):
    """Sketches that cannot be merged, or a normaliser that does not fit the policy."""


class BadModelFile(PolicyError, ValueError):
    """An ONNX file that cannot be loaded, or that lacks what its metadata promises."""


class BadObservation(PolicyError, ValueError):
    """An observation with a missing input or a wrong shape."""


class InferenceFailed(PolicyError, RuntimeError):
    """The runtime could not compute a loaded policy's actions."""


class BadDataset(PolicyError, ValueError):
    """A dataset that cannot be read, or that lacks a feature that the policy needs."""


class NoEpisodes(PolicyError, LookupError):
    """There is nothing to train from, or nothing to evaluate on."""


class ParityFailed(PolicyError, ArithmeticError):
    """The exported graph does not compute what the trained policy computes."""


class MissingPackage(PolicyError, ImportError):
    """A kind of policy needs a package that is not installed."""


class MissingArtefact(PolicyError, FileNotFoundError):
    """A file that a policy starts from is not at this host, or is another one."""


class BadManifest(PolicyError, ValueError):
    """A release manifest that does not fit its model or its digest."""


class WrongManifest(BadManifest):
    """Not the manifest that was announced: its digest is another."""


class BadPolicyFolder(PolicyError, ValueError):
    """A policy's folder that is not whole: a file is missing, damaged or not what it should be."""


class NoSuchDevice(PolicyError, LookupError):
    """Training is to run on a device that this host does not have."""


class TooLittleMemory(PolicyError, MemoryError):
    """Not even one frame can be trained on in the memory that there is."""


class BadCheckpoint(PolicyError, ValueError):
    """A file that is no checkpoint of this policy's training."""


class DamagedPolicyFolder(BadPolicyFolder):
    """A file of the folder is missing, or not what its manifest says; fetched again, it may fit."""
