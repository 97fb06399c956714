"""A model as one C file without malloc, and its header: `kws` maps a waveform to probabilities, mel spectrogram inside.

emx-onnx-cgen writes the C from the ONNX graph. Each of its intermediate results is an array of its own; here those that
are not needed at the same time share one memory.
"""

import ctypes
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.model import formats
from kws.model.onnx import report_nothing
from kws.preprocess.audio import Waveform
from kws.settings import require

if TYPE_CHECKING:
    from kws.model.bundle import Recognizer

OPTIONS = ("-std=c99", "-O2")
SIZES = {"float": 4, "int32_t": 4, "int64_t": 8, "uint8_t": 1, "int8_t": 1, "_Bool": 1}
ABOUT = re.compile(rb"/\* kws: (.*) \*/")

HEADER = """/* A recognizer of spoken words, written by kws export. Compile model.c as C99, and link it with -lm. */
#ifndef KWS_H
#define KWS_H

#define KWS_SAMPLE_RATE {rate}
#define KWS_NUM_SAMPLES {samples}
#define KWS_NUM_WORDS {num_words}

static const char *const KWS_WORDS[KWS_NUM_WORDS] = {{{words}}};

/* Maps samples in -1 to 1 to a probability for each word. Not for two threads at the same time. */
void kws(const float waveform[1][KWS_NUM_SAMPLES], float probabilities[1][KWS_NUM_WORDS]);

#endif
"""


def export(recognizer: "Recognizer", path: Path, int8: bool = False, beside: Path | None = None) -> dict[str, float]:
    """Writes a model as C, and the header beside it, atomically; see `formats.Format.export`.

    If there is a C compiler, the figures are the bytes of constants and code (flash), the bytes of memory with the
    stack (RAM), and the seconds of one core for a clip.

    Raises:
        ValueError: emx-onnx-cgen is not installed, or cannot write this model.
    """
    import torch

    from kws.model.onnx import trace
    from kws.model.whole import WaveformToWords

    try:
        from emx_onnx_cgen.compiler import Compiler, CompilerOptions
        from emx_onnx_cgen.errors import CompilerError
    except ImportError as error:
        raise formats.missing("emx-onnx-cgen", "c") from error
    config = recognizer.features
    graph = _folded(
        trace(
            WaveformToWords(recognizer), {"waveforms": torch.zeros(1, config.num_samples)}, ["probabilities"], {}, int8
        )
    )
    options = CompilerOptions(model_name="kws", large_temp_threshold_bytes=0, large_weight_threshold=0)
    try:
        source = Compiler(options).compile(graph)
    except CompilerError as error:
        raise ValueError(f"the model must have only operators that emx-onnx-cgen knows, got {error}") from error
    about = json.dumps(formats.describe(recognizer, int8)).replace("*/", "*\\/")
    files.write(path, f"/* kws: {about} */\n{_in_one_memory(source)}")
    header = HEADER.format(
        rate=config.sample_rate,
        samples=config.num_samples,
        num_words=len(recognizer.words),
        words=", ".join(json.dumps(word, ensure_ascii=False) for word in recognizer.words),
    )
    files.write(path.with_suffix(".h"), header)
    return _measure(path) if _compiler() else {}


def load(path: Path, num_threads: int = 0) -> formats.Exported:
    """Compiles a file that `export` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of `export`, or there is no C compiler.
    """
    with path.open("rb") as file:
        about = ABOUT.match(file.readline())
    compiler = _compiler()
    require(compiler is not None, "cc, a C compiler,", "be installed to run a .c file", "none")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kws.so"
        if about is None or not _run(str(compiler), *OPTIONS, "-shared", "-fPIC", path, "-o", library, "-lm"):
            raise ValueError(f"model must be a .c file of kws export, got {path}, which is damaged or another's")
        function = ctypes.CDLL(str(library)).kws

    def hear(waveform: Waveform) -> npt.NDArray[np.float32]:
        probabilities = np.empty(len(found.words), np.float32)
        function(waveform.ctypes.data_as(ctypes.c_void_p), probabilities.ctypes.data_as(ctypes.c_void_p))
        return probabilities

    found = formats.Exported.described(about[1], path, hear)
    return found


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _run(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _folded(graph: Any) -> Any:
    """Returns a graph with all constants computed, all shapes known, and scalars for zero points that are all zero."""
    import onnx

    report_nothing()
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(graph, before)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(after)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(before, options, providers=["CPUExecutionProvider"])
        graph = onnx.shape_inference.infer_shapes(onnx.load(after), data_prop=True)
    constants = {one.name: one for one in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "MatMulInteger":
            zero = constants[node.input[3]]
            values = onnx.numpy_helper.to_array(zero)
            assert not values.any()  # the weights are quantized symmetrically
            zero.CopyFrom(onnx.numpy_helper.from_array(np.zeros((), values.dtype), zero.name))
    return graph


def _in_one_memory(source: str) -> str:
    """Lets the arrays of the function `kws` share a static memory; each lies there from its first use to its last."""
    start = source.index("\nvoid kws(")
    lines = source[start:].split("\n")
    declared = {}
    for number, line in enumerate(lines):
        if found := re.fullmatch(r"    (\w+) (\w+)((?:\[\d+\])+);", line):
            kind, name, shape = found.groups()
            declared[name] = (number, kind, shape, SIZES[kind] * math.prod(map(int, re.findall(r"\d+", shape))))
    uses: dict[str, list[int]] = {name: [] for name in declared}
    for number, line in enumerate(lines):
        for name in re.findall(r"\w+", line.partition("(")[2]):
            if name in uses:
                uses[name].append(number)
    placed: list[tuple[int, int, int, int]] = []  # first and last line of use, first and last byte
    total = 0
    # The largest first, each at the lowest place that is free while it is in use.
    for name, (number, kind, shape, size) in sorted(declared.items(), key=lambda item: -item[1][3]):
        first, last = uses[name][0], uses[name][-1]
        rivals = sorted(one[2:] for one in placed if one[0] <= last and first <= one[1])
        at = 0
        for low, high in rivals:
            if at + size <= low:
                break
            at = max(at, high)
        size = -(-size // 8) * 8
        placed.append((first, last, at, at + size))
        total = max(total, at + size)
        row = shape[shape.index("]") + 1 :]
        target = f"(*{name}){row}" if row else f"*{name}"
        lines[number] = f"    {kind} {target} = (void *)(memory + {at});"
    memory = f"\nstatic union {{ char bytes[{total}]; double aligned; }} shared;\n#define memory shared.bytes\n"
    return source[:start] + memory + "\n".join(lines)


def _measure(path: Path) -> dict[str, float]:
    """Returns the figures of `export`."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "kws.o"
        _run(str(_compiler()), *OPTIONS, "-fstack-usage", "-c", path, "-o", compiled)
        text, data, bss = map(int, subprocess.check_output(["size", compiled], text=True).split("\n")[1].split()[:3])
        usage = compiled.with_suffix(".su")
        stack = [int(line.split("\t")[1]) for line in usage.read_text().splitlines()] if usage.exists() else [0]
    recognizer = load(path)
    clip = 0.1 * np.random.default_rng(0).standard_normal(recognizer.features.num_samples, dtype=np.float32)
    began = time.process_time()
    for _ in range(3):
        recognizer.hear(clip)
    seconds = (time.process_time() - began) / 3
    deepest = sum(sorted(stack)[-2:])  # `kws` and one of the functions that it calls
    return {"flash_bytes": text + data, "ram_bytes": data + bss + deepest, "seconds_a_clip": round(seconds, 4)}
