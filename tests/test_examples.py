"""The examples, each run in small."""

import math
import signal
import sysconfig
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

# Next to nothing is compiled in this mode: one run of the default takes longer to compile than all
# of these tests to run.
SMALL = ["--mode", "FAST_COMPILE", "--files", "12", "--steps", "20"]


@pytest.fixture(autouse=True)
def examples_found(monkeypatch):
    """Have the examples import one another, as they do where Python runs one of them."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")


@pytest.fixture
def corpus():
    return import_module("stdlib_corpus")


@pytest.fixture
def softmax(monkeypatch):
    module = import_module("class_factored_softmax")
    monkeypatch.setattr(module, "HIDDEN", 16)
    return module


@pytest.fixture
def example(softmax, monkeypatch):
    module = import_module("stdlib_language_model")
    monkeypatch.setattr(module, "BATCH", 64)
    monkeypatch.setattr(module, "HELD_OUT_TOKENS", 512)
    return module


@pytest.fixture
def plot(tmp_path):
    return tmp_path / "curve.png"


@pytest.mark.parametrize("layer", [[], ["--dense"]], ids=["classes", "dense"])
def test_language_model_learns(example, plot, capsys, layer):
    result = example.main([*SMALL, "--steps", "60", *layer, "--plot", str(plot)])
    assert result.steps == 60
    assert not result.interrupted
    assert result.perplexity < 0.9 * result.unigram
    assert result.curve[0][1] == pytest.approx(result.unigram, rel=0.1)
    assert result.tokens_per_second > 0

    shown = capsys.readouterr().out
    assert f"{result.perplexity:.1f} on held-out files" in shown
    assert f"a unigram's is {result.unigram:.1f}" in shown
    assert ("full softmax" in shown) == bool(layer)
    assert plot.exists() == (example.Figure is not None)


@pytest.mark.parametrize("dense", [False, True], ids=["classes", "dense"])
def test_language_model_gives_a_distribution(softmax, dense):
    counts = np.array([50, 20, 9, 9, 5, 4, 3, 2, 1, 1])
    rng = np.random.default_rng(0)
    model = softmax.build_model(counts, dense, "FAST_COMPILE", rng)
    for _ in range(10):
        contexts, tokens = rng.integers(10, size=(64, softmax.CONTEXT)), rng.integers(10, size=64)
        model.step(contexts, tokens, np.float32(0.1))
    log_p = [float(model.log_p(contexts[:1], np.array([token]))) for token in range(10)]
    assert np.exp(log_p).sum() == pytest.approx(1, rel=1e-5)

    parameters = {name: p.get_value() for name, p in model.parameters.items()}
    assert all(value.dtype == "float32" for value in parameters.values())
    # Three classes of four: the last two places hold no token, and have learnt nothing.
    padding = parameters["b"].ravel()[10:]
    assert len(padding) == (0 if dense else 2)
    assert np.isneginf(padding).all()
    assert dense or not parameters["W"][2, :, 2:].any()
    parameters["b"] = parameters["b"].ravel()[:10]
    assert all(np.isfinite(value).all() for value in parameters.values())


@pytest.mark.parametrize("extras", [True, False], ids=["extras", "bare"])
def test_language_model_stops_on_an_interrupt(example, plot, capsys, monkeypatch, extras):
    if not extras:
        monkeypatch.setattr(example, "tqdm", None)
        monkeypatch.setattr(example, "Figure", None)
    draw_examples, drawn = example.draw_examples, []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(*args):
        drawn.append(args)
        # The first draw is the held-out sample.
        if len(drawn) == 1 + 8:
            signal.raise_signal(signal.SIGINT)
        return draw_examples(*args)

    monkeypatch.setattr(example, "draw_examples", interrupted)
    result = example.main([*SMALL, "--plot", str(plot)])
    shown = capsys.readouterr().out

    assert signal.getsignal(signal.SIGINT) is handler
    assert result.interrupted
    assert result.steps == 8
    assert [step for step, _ in result.curve] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert "Stopped before the end" in shown
    assert "8 steps" in shown
    assert plot.exists() == (example.Figure is not None)
    assert ("pip install tqdm" in shown) == (example.tqdm is None)
    assert ("pip install matplotlib" in shown) == (example.Figure is None)


class SmallestModel:
    def compile_for(self, batch):
        pass


@pytest.mark.parametrize("moment", ["compiling", "just before training"])
def test_language_model_stops_on_an_interrupt_before_training(example, monkeypatch, capsys, moment):
    handle, handlers = signal.signal, []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(*_):
        raise KeyboardInterrupt

    def interrupted_once(number, handler):
        handlers.append(handler)
        return interrupted() if len(handlers) == 1 else handle(number, handler)

    build = interrupted if moment == "compiling" else lambda *_: SmallestModel()
    monkeypatch.setattr(example, "build_model", build)
    monkeypatch.setattr(signal, "signal", interrupted_once if moment != "compiling" else handle)
    result = example.main(SMALL)
    assert result.interrupted
    assert math.isnan(result.perplexity)
    assert "Stopped before training began" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler


def test_language_model_splits_by_file_and_seed(corpus):
    def load(seed):
        return corpus.load_corpus(12, np.random.default_rng(seed))

    first, again, other = load(0), load(0), load(1)
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.held_out, again.held_out)
    assert not np.array_equal(first.train, other.train)
    assert (np.diff(first.counts) <= 0).all()
    np.testing.assert_array_equal(first.counts, np.bincount(first.train))


def test_language_model_reads_each_module_once(corpus):
    files = list(corpus.source_files(None, np.random.default_rng(0)))
    assert len(set(files)) == len(files) > 100
    assert all(file.suffix == ".py" for file in files)
    root = sysconfig.get_paths()["stdlib"]
    assert not {"test", "site-packages"} & {p for f in files for p in f.relative_to(root).parts}


@pytest.mark.parametrize("source", [b"\xff\xfe\x00", b"(", b"'''", b"  a\n b\n"])
def test_language_model_skips_what_is_not_python(corpus, tmp_path, source):
    path = tmp_path / "module.py"
    path.write_bytes(source)
    assert corpus.read_tokens(path) == []


def test_language_model_reads_tokens(corpus, tmp_path):
    path = tmp_path / "module.py"
    path.write_text("if a:  # why\n\n    b = 1\n")
    layout = ["NEWLINE", "INDENT", "DEDENT", "ENDMARKER"]
    newline, indent, dedent, end = layout
    expected = ["if", "a", ":", newline, indent, "b", "=", "1", newline, dedent, end]
    assert corpus.read_tokens(path) == expected
