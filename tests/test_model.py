import pickle

import pytest
import torch

from dfdc_lib.config import ENCODERS
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepfakeClassifier("tiny").eval()


def test_the_head_is_an_average_and_a_matrix_product(model):
    crops = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        features = model.encoder.forward_features(crops)
        by_hand = features.mean(dim=(2, 3)) @ model.fc.weight[0] + model.fc.bias
        assert torch.allclose(model(crops), by_hand, atol=1e-6)
    assert torch.allclose(model.predict(crops), torch.sigmoid(by_hand), atol=1e-6)


def test_the_demo_encoder_is_small(model):
    assert sum(p.numel() for p in model.parameters()) < 400_000


def test_unknown_encoders_name_the_choices():
    with pytest.raises(ValueError, match="b3, b4, b5"):
        DeepfakeClassifier("b99")


def test_a_checkpoint_comes_back_as_it_was(model, tmp_path):
    save_checkpoint(tmp_path / "m.pt", model)
    loaded = load_checkpoint(tmp_path / "m.pt")
    crops = torch.randn(3, 3, ENCODERS["tiny"].size, ENCODERS["tiny"].size)
    assert torch.equal(loaded.predict(crops), model.predict(crops))
    assert loaded.card == model.card


class Evil:
    def __reduce__(self):
        return (print, ("executed!",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump({"card": Evil(), "state_dict": {}}, file, protocol=2)
    torch.save({"card": Evil(), "state_dict": {}}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(ValueError, match="can be read safely"):
            load_checkpoint(tmp_path / name)
    assert "executed!" not in capsys.readouterr().out


def test_broken_checkpoints_are_clear_errors(model, tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    save_checkpoint(tmp_path / "whole.pt", model)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    stored = torch.load(tmp_path / "whole.pt", weights_only=True)
    torch.save(stored | {"card": stored["card"] | {"encoder": "b3"}}, tmp_path / "b3.pt")
    for name, message in (("empty", "safely"), ("other", "lacks"), ("cut", "safely"), ("b3", "does not fit")):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError, match="gone.pt"):
        load_checkpoint(tmp_path / "gone.pt")
