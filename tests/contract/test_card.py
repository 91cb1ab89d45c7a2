"""Cards of models from elsewhere: what they must say, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segnode_contract.card import parse_card
from segnode_contract.card_network import BundleNetwork, NnunetNetwork, TorchScriptNetwork
from segnode_contract.errors import CardError

README = Path(__file__).parents[2] / "README.md"
HEAD = """
name = "ct-liver"
version = "1"
intended_use = "Tests."
limitations = ["Not for use."]
licence = "none"
memory_bytes = 1000
time_limit_s = 60
"""
INPUT = '[input]\nmodality = "CT"\norientation = "HPL"\nmin_slices = 3\n'
SEGMENT = """
[[segments]]
number = 1
label = "Liver"
plane = 0
value = 1
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical structure" }
type = { value = "10200004", scheme = "SCT", meaning = "Liver" }
colour = [30000, 40000, 30000]
"""
TORCHSCRIPT = (
    INPUT
    + """
spacing_mm = [3, 1.5, 1.5]
intensity = { clip = [-100, 300], scale = [0, 1] }
[network]
patch = [32, 64, 64]
activation = "sigmoid"
"""
)


SOFTMAX = TORCHSCRIPT.replace("sigmoid", "softmax")


def card(kind: str, rest: str, head: str = HEAD, segment: str = SEGMENT):
    return parse_card(f'kind = "{kind}"\n{head}{rest}{segment}', where="ct-liver/card.toml")


def test_a_torchscript_card_says_all_that_code_would_say():
    network = card("torchscript", SOFTMAX).network
    assert isinstance(network, TorchScriptNetwork)
    assert network.spacing_mm == (3, 1.5, 1.5)
    assert network.intensity.scale == (0, 1)
    assert (network.patch, network.overlap, network.blend) == ((32, 64, 64), 0.25, "gaussian")


def test_the_card_in_the_readme_is_one():
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    [block] = [block for block in blocks if "[network]" in block]
    (spleen,) = card("torchscript", block, segment="").segments
    assert (spleen.label, spleen.channel, spleen.type.meaning) == ("Spleen", 1, "Spleen")


def test_a_bundle_and_an_nnunet_have_their_usual_places():
    bundle = card("monai-bundle", INPUT + "[network]\n").network
    assert bundle == BundleNetwork(
        config="configs/inference.json", weights="models/model.pt", image="image", pred="pred"
    )
    nnunet = card("nnunet", INPUT + '[network]\nfolds = ["0", "1"]\nmirroring = false\n').network
    assert isinstance(nnunet, NnunetNetwork)
    assert (nnunet.folds, nnunet.mirroring, nnunet.checkpoint) == (
        ("0", "1"),
        False,
        "checkpoint_final.pth",
    )


def test_a_segments_channel_is_its_value_where_nothing_else_is_said():
    (segment,) = card("torchscript", SOFTMAX).segments
    assert segment.channel == 1
    (other,) = card("torchscript", SOFTMAX, segment=SEGMENT + "channel = 2\n").segments
    assert other.channel == 2


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (TORCHSCRIPT.replace("overlap", "").replace("patch", "pach"), "'patch' was probably meant"),
        (TORCHSCRIPT.replace("[32, 64, 64]", "[32, 64]"), "3 numbers"),
        (TORCHSCRIPT.replace("[32, 64, 64]", "[0, 64, 64]"), "a voxel at least"),
        (TORCHSCRIPT.replace('"sigmoid"', '"softmin"'), "one of softmax, sigmoid, none"),
        (TORCHSCRIPT.replace("[3, 1.5, 1.5]", "[3, 0, 1.5]"), "more than 0"),
        (TORCHSCRIPT.replace("spacing_mm", "# "), "no line 'spacing_mm'"),
        (TORCHSCRIPT.replace("clip = [-100, 300], ", ""), "scale without clip"),
        (TORCHSCRIPT.replace("[-100, 300]", "[300, -100]"), "the lower one"),
        (TORCHSCRIPT.replace("scale = [0, 1]", "mean = 1, per_image = true"), "one of"),
        (TORCHSCRIPT + "overlap = 1.0\n", "overlap is 1.0"),
        (TORCHSCRIPT + "threshold = nan\n", "a number is needed"),
        (TORCHSCRIPT + 'weights = "../../etc/passwd"\n', "outside the model's folder"),
        (TORCHSCRIPT + 'weights = "/etc/passwd"\n', "outside the model's folder"),
        (TORCHSCRIPT.replace("[network]", "[net]"), "'net'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(rest, said):
    with pytest.raises(CardError, match=r"ct-liver/card\.toml") as raised:
        card("torchscript", rest)
    assert said in raised.value.sentence


TWO = SEGMENT + SEGMENT.replace("number = 1", "number = 2").replace("plane = 0", "plane = 1")


def test_two_segments_of_one_channel_are_refused():
    """They would show one organ twice, under two names."""
    with pytest.raises(CardError, match="two segments have channel 1"):
        card("nnunet", INPUT + '[network]\nfolds = ["0"]\n', segment=TWO)


def test_where_channels_overlap_each_segment_says_its_own():
    with pytest.raises(CardError, match="has no line 'channel'"):
        card("torchscript", TORCHSCRIPT, segment=SEGMENT)
    card("torchscript", TORCHSCRIPT, segment=SEGMENT + "channel = 0\n")


def test_only_a_card_that_says_so_lets_a_network_run_on_the_cpu():
    assert not card("torchscript", SOFTMAX).cpu
    assert card("torchscript", SOFTMAX, head=HEAD + "cpu = true\n").cpu


def test_folds_are_named():
    with pytest.raises(CardError, match="folds is"):
        card("nnunet", INPUT + '[network]\nfolds = ["first"]\n')


def test_a_misspelt_line_is_not_passed_over():
    with pytest.raises(CardError, match="'time_limit_s' was probably meant"):
        card("torchscript", TORCHSCRIPT, head=HEAD + "time_limits_s = 3\n")


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        (
            'label = "Liver"',
            'label = "Gefäße 肝臓"',
            "segments[1]: label is 'Gefäße 肝臓', of which '肝', '臓'",
        ),
        ('label = "Liver"', 'label = "a\\\\b"', "cannot be written"),
        ('label = "Liver"', 'label = "a\\u001b[2J"', r"of which '\x1b' cannot be written"),
        ('"Liver" }', '"Печень" }', "segments[1]: type: meaning is 'Печень', of which 'П', 'е'"),
        ('"10200004"', '"肝"', "segments[1]: type: value is '肝'"),
        ('scheme = "SCT", meaning = "Anat', 'scheme = "肝", meaning = "Anat', "category: scheme"),
        ('name = "ct-liver"', 'name = "肝"', "ct-liver/card.toml: name is '肝'"),
        ('version = "1"', 'version = "版"', "ct-liver/card.toml: version is '版'"),
    ],
)
def test_a_name_that_results_cannot_hold_is_refused_with_its_line(line, instead, said):
    with pytest.raises(CardError) as raised:
        card(
            "torchscript",
            SOFTMAX,
            head=HEAD.replace(line, instead),
            segment=SEGMENT.replace(line, instead),
        )
    assert said in raised.value.sentence
    assert "character set of their images" in raised.value.sentence


@pytest.mark.parametrize("label", ["Gefäße groß", "Foie œdémateux", "Łydka, płuco", "Lever – ø"])
def test_a_name_that_can_be_said_in_ascii_is_taken_as_it_is(label):
    (segment,) = card(
        "torchscript", SOFTMAX, segment=SEGMENT.replace('"Liver"', f'"{label}"', 1)
    ).segments
    assert segment.label == label
