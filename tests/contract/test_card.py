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
NNUNET = INPUT + '[network]\nfolds = ["0"]\n'


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
    (spleen,) = parse_card(block, where="README.md").segments
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
        (
            TORCHSCRIPT.replace("[32, 64, 64]", "[0, 64, 64]"),
            "patch is 0; a whole number from 1 on",
        ),
        (TORCHSCRIPT.replace("[32, 64, 64]", "[32.9, 64, 64]"), "patch is 32.9; a whole number"),
        (
            TORCHSCRIPT.replace("clip = [-100, 300], scale = [0, 1]", "mean = 1, std = 0"),
            "std is 0",
        ),
        (SOFTMAX.replace("slices = 3", "slices = -3"), "min_slices is -3; a whole number from"),
        (SOFTMAX.replace("slices = 3", "slices = 2.7"), "min_slices is 2.7; a whole number"),
        (SOFTMAX.replace("min_", "largest_gap_mm = -1\nmin_"), "largest_gap_mm is -1; it must"),
        (SOFTMAX.replace("min_", 'builds_on = "ct-liver"\nmin_'), "the model itself"),
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


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("time_limit_s = 60", "time_limit_s = 0", "time_limit_s is 0; it must be more than 0"),
        ("memory_bytes = 1000", "memory_bytes = -1", "memory_bytes is -1; a whole number from 1"),
        ("number = 1", "number = 1.5", "segments[1]: number is 1.5; a whole number"),
        ("value = 1", "value = 1.9", "segments[1]: value is 1.9; a whole number from 1 to 255"),
        ("value = 1", "value = 256", "segments[1]: value is 256; a whole number from 1 to 255"),
        ("value = 1", "value = 1\nchannel = 1.5", "channel is 1.5; a whole number from 0"),
        ("value = 1", "value = 1\nchannel = -1", "channel is -1; a whole number from 0"),
        ("[30000, ", "[30000.5, ", "colour is 30000.5; a whole number from 0 to 65535"),
        ("value = 1", "value = 1\nplausible_ml = [2000, 30]", "plausible_ml is [2000.0, 30.0]"),
        ("value = 1", "value = 1\nplausible_ml = [-5, 30]", "plausible_ml is [-5.0, 30.0]"),
        ("plane = 0", "plane = 100_000", "planes are [100000]; they must run 0, 1, 2"),
    ],
)
def test_a_figure_that_cannot_be_true_is_refused(line, instead, said):
    """It was cut to a whole number, or only the job found out."""
    head, segment = HEAD.replace(line, instead), SEGMENT.replace(line, instead, 1)
    with pytest.raises(CardError) as raised:
        card("torchscript", SOFTMAX, head=head, segment=segment)
    assert said in raised.value.sentence


def test_whole_figures_may_be_written_with_a_point():
    assert card("torchscript", SOFTMAX, head=HEAD.replace("1000", "1e9")).memory_bytes == 10**9


def test_a_gap_between_planes_is_refused():
    """Memory goes by the highest plane."""
    with pytest.raises(CardError, match=r"planes are \[0, 2\]"):
        card("nnunet", NNUNET, segment=TWO.replace("plane = 1", "plane = 2\nchannel = 2"))


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ('"10200004"', '"900000000000207008"', "value is '900000000000207008', 18 signs long"),
        (
            'scheme = "SCT"',
            'scheme = "A-SCHEME-OF-MINE-"',
            "scheme is 'A-SCHEME-OF-MINE-', 17 signs",
        ),
    ],
)
def test_a_code_that_results_cannot_hold_is_refused_with_what_to_do(line, instead, said):
    with pytest.raises(CardError) as raised:
        card("torchscript", SOFTMAX, segment=SEGMENT.replace(line, instead))
    assert said in raised.value.sentence
    assert "a scheme that begins with 99" in raised.value.sentence


def test_a_code_of_sixteen_signs_is_taken_and_spaces_at_its_ends_are_not():
    """An archive drops them, and the proof would miss them."""
    (segment,) = card(
        "torchscript", SOFTMAX, segment=SEGMENT.replace('"10200004"', '" 1234567890123456 "')
    ).segments
    assert segment.type.value == "1234567890123456"


SERIES = '[[input.series]]\nrole = "t1"\n[[input.series]]\nrole = "flair"\n'


def test_a_model_may_take_several_series_and_one_of_them_not_always():
    several = card("nnunet", NNUNET.replace("[net", f"{SERIES}optional = true\n[net")).inputs
    assert [(one.role, one.optional) for one in several] == [("t1", False), ("flair", True)]


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ('"flair"', '"t1"', "series[2]: role is 't1'; each series needs one word of its own"),
        ('"flair"', '"t2 flair"', "series[2]: role is 't2 flair'; each series needs one word"),
        ('"flair"', '"flair"\noptional = "yes"', "optional is 'yes'; it must be true or false"),
    ],
)
def test_series_that_cannot_be_told_apart_are_refused(line, instead, said):
    """Two of one role were one series, and zeros in place of the other."""
    with pytest.raises(CardError) as raised:
        card("nnunet", NNUNET.replace("[net", f"{SERIES.replace(line, instead)}[net"))
    assert said in raised.value.sentence


def test_the_background_of_a_softmax_is_no_segment():
    """All that is nothing would bear its name."""
    with pytest.raises(CardError, match="segment 1 has channel 0, which is the background"):
        card("torchscript", SOFTMAX, segment=SEGMENT + "channel = 0\n")


def test_a_card_may_begin_with_a_byte_order_mark():
    """Editors on Windows write one."""
    text = f'kind = "nnunet"\n{HEAD}{NNUNET}{SEGMENT}'
    read = parse_card(f"\ufeff{text}", where="card")
    assert read.segments == parse_card(text, where="card").segments
    assert parse_card(read.source, where="the ledger") == read


TWO = SEGMENT + SEGMENT.replace("number = 1", "number = 2").replace("plane = 0", "plane = 1")


def test_two_segments_of_one_channel_are_refused():
    """They would show one organ twice, under two names."""
    with pytest.raises(CardError, match="two segments have channel 1"):
        card("nnunet", NNUNET, segment=TWO)


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
