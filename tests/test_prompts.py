"""Text prompts, word for word."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inctrl_lite.prompts import text_prompts, text_prototype, text_prototypes

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "inctrl_seed101.npz"


def test_the_ensemble_has_154_and_88_sentences_without_repetition():
    normal, anomalous = text_prompts("metal_nut")
    assert (len(set(normal)), len(set(anomalous))) == (154, 88)
    assert all(sentence.endswith(".") and "metal nut" in sentence for sentence in normal + anomalous)
    assert "a jpeg corrupted photo of the metal nut without defect." in normal
    assert "a photo of a large metal nut with damage." in anomalous


def test_the_article_fits_the_name():
    normal, anomalous = text_prompts("even_digit")
    assert (
        "a photo of an even digit." in normal and "a cropped photo of an even digit without flaw." in normal
    )
    assert "a photo of a flawless even digit." in normal and "a photo of a small even digit." in normal
    assert "a photo of the even digit with damage." in anomalous
    assert not [s for s in normal + anomalous if " a even" in s]
    assert len(set(normal)) == 154 and len(set(anomalous)) == 88
    for name, phrase in {"Apple": "an Apple", "unit": "a unit", "one-way valve": "a one-way valve"}.items():
        assert f"a photo of {phrase}." in text_prompts(name)[0]


@pytest.mark.parametrize("name", ["AITEX", "elpv", "candle", "brain"])
def test_names_of_the_papers_data_sets_keep_the_public_wording(name):
    assert f"a photo of a {name}." in text_prompts(name)[0]


def test_natural_categories_have_one_sentence_each():
    assert text_prompts("truck") == (
        ["a photo of truck for anomaly detection."],
        ["a photo without truck for anomaly detection."],
    )


def test_prototype_is_the_direction_of_the_mean_direction():
    embeddings = torch.tensor([[5.0, 0.0], [0.0, 0.1]])  # lengths must not matter
    torch.testing.assert_close(text_prototype(embeddings), torch.full((2,), 0.5**0.5))


def test_prototypes_are_normal_first(small_backbone):
    prototypes = text_prototypes(small_backbone, "cat")
    normal = small_backbone.text_encoder.encode(["a photo of cat for anomaly detection."])[0]
    torch.testing.assert_close(prototypes[0], normal / normal.norm())
    torch.testing.assert_close(prototypes.norm(dim=-1), torch.ones(2))


@pytest.mark.skipif(not GOLDEN.exists(), reason="the public code's outputs (../shared/golden) are not here")
def test_tokens_are_those_of_the_public_code():
    from open_clip.tokenizer import SimpleTokenizer

    tokenize = SimpleTokenizer()
    with np.load(GOLDEN) as golden:
        for name in sorted(set(json.loads(bytes(golden["meta"]))["names"])):
            for kind, sentences in zip(("normal", "anomaly"), text_prompts(name), strict=True):
                theirs = golden[f"tokens/{name}/{kind}"].astype(np.int64).tolist()
                assert sorted(tokenize(sentences).tolist()) == sorted(theirs), (name, kind)
