"""The OpenVINO engine's decisions, each as the pure function that it is."""

import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter

import chatfleet.engines.openvino.sampling as sampling_module
from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import RequestRefused, SamplingParams
from chatfleet.engines.memory import KV_FRACTION, KVShape, available_bytes, kv_blocks
from chatfleet.engines.openvino.admission import Need, Pool
from chatfleet.engines.openvino.gguf_header import NotGGUF, read_gguf_header
from chatfleet.engines.openvino.ir import LOGIT_SHIFT, shift_logits
from chatfleet.engines.openvino.model_files import first_line, inspect_model
from chatfleet.engines.openvino.prefill import MAX_STEP_TOKENS, MIN_STEP_TOKENS, measure_step_cost, step_tokens
from chatfleet.engines.openvino.sampling import honoured_parameters
from engines.openvino_models import TINY, writer


def generation_settings(sampling: SamplingParams, *, given: int = 0) -> dict[str, Any]:
    return sampling_module.generation_settings(sampling, given=given, vocab_size=TINY.vocab_size)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = writer.write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY)
    return path


class TestGenerationSettings:
    def test_temperature_zero_is_greedy(self) -> None:
        settings = generation_settings(SamplingParams(max_tokens=5, temperature=0.0))
        assert settings["do_sample"] is False
        assert "temperature" not in settings

    def test_sampling_settings_go_through(self) -> None:
        sampling = SamplingParams(max_tokens=5, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, seed=3)
        settings = generation_settings(sampling, given=3)
        assert settings["max_new_tokens"] == 2
        assert {name: settings[name] for name in ("temperature", "top_p", "top_k", "min_p", "rng_seed")} == {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "rng_seed": settings["rng_seed"],
        }
        assert generation_settings(sampling)["rng_seed"] == 3

    def test_behind_given_tokens_other_random_numbers_are_drawn_and_again_the_same(self) -> None:
        sampling = SamplingParams(max_tokens=9, seed=3)
        seeds = [generation_settings(sampling, given=given)["rng_seed"] for given in (0, 1, 2, 1)]
        assert seeds[0] == 3 and len(set(seeds)) == 3 and seeds[1] == seeds[3]
        assert all(0 <= seed < 2**32 for seed in seeds)

    def test_without_stop_tokens_nothing_stops_it(self) -> None:
        settings = generation_settings(SamplingParams(max_tokens=5))
        assert settings["ignore_eos"] is True
        # Left empty, the pipeline would take the model's own.
        assert settings["eos_token_id"] >= 0 and settings["stop_token_ids"]

    def test_stop_tokens_replace_the_models_own(self) -> None:
        settings = generation_settings(SamplingParams(max_tokens=5, stop_token_ids=(7, 9)))
        assert settings["ignore_eos"] is False
        assert settings["eos_token_id"] in settings["stop_token_ids"] == {7, 9}

    def test_seeds_that_differ_beyond_32_bits_differ(self) -> None:
        given = (-(2**63), -1, 0, 2**32 - 1, 2**32, 2**63 - 1)
        seeds = {generation_settings(SamplingParams(max_tokens=1, seed=seed))["rng_seed"] for seed in given}
        assert len(seeds) == len(given) and all(0 <= seed < 2**32 for seed in seeds)

    def test_without_a_seed_each_request_has_its_own(self) -> None:
        drawn = {generation_settings(SamplingParams(max_tokens=1))["rng_seed"] for _ in range(20)}
        assert len(drawn) == 20

    def test_logprobs_of_the_chosen_tokens(self) -> None:
        assert generation_settings(SamplingParams(max_tokens=1))["logprobs"] == 0
        assert generation_settings(SamplingParams(max_tokens=1, logprobs=0))["logprobs"] == 1

    @pytest.mark.parametrize(
        "bad",
        [
            {"max_tokens": 0},
            {"temperature": -0.1},
            {"temperature": float("nan")},
            {"top_p": 1.1},
            {"min_p": -0.1},
            {"presence_penalty": 2.1},
            {"frequency_penalty": float("nan")},
            {"repetition_penalty": 0.0},
        ],
    )
    def test_out_of_range_is_refused_by_name(self, bad: dict[str, Any]) -> None:
        with pytest.raises(RequestRefused) as refused:
            generation_settings(SamplingParams(**{"max_tokens": 1} | bad))
        assert refused.value.fault.param == next(iter(bad))

    @pytest.mark.parametrize("speculates", [True, False])
    @pytest.mark.parametrize("shifted", [True, False])
    def test_only_penalties_that_come_out_right_are_offered(self, shifted: bool, speculates: bool) -> None:
        offered = honoured_parameters(shifted_logits=shifted, speculates=speculates)
        assert {"presence_penalty", "frequency_penalty"} <= offered if shifted else "presence_penalty" not in offered
        assert ("repetition_penalty" in offered) is not shifted
        assert ("min_tokens" in offered) is (shifted and not speculates)
        assert not offered & {"logit_bias", "bad_words_token_ids"}

    def test_stop_tokens_are_held_back_for_as_long_as_there_are_any(self) -> None:
        def least(given: int = 0, **sampling: Any) -> int:
            settings = generation_settings(SamplingParams(max_tokens=9, **sampling), given=given)
            return int(settings["min_new_tokens"])

        assert least(stop_token_ids=(7,)) == 0
        assert least(stop_token_ids=(7,), min_tokens=5) == 5
        assert least(stop_token_ids=(7,), min_tokens=5, given=3) == 2
        assert least(stop_token_ids=(7,), min_tokens=5, given=6) == 0
        assert least(stop_token_ids=(7,), min_tokens=20) == 9
        assert least(min_tokens=5) == 0

    def test_stop_tokens_beyond_the_vocabulary_are_left_out(self) -> None:
        settings = generation_settings(SamplingParams(max_tokens=9, min_tokens=3, stop_token_ids=(7, 512)))
        assert settings["stop_token_ids"] == {7}
        settings = generation_settings(SamplingParams(max_tokens=9, min_tokens=3, stop_token_ids=(512, 9000)))
        assert settings["ignore_eos"] is True and settings["min_new_tokens"] == 0


class TestAdmission:
    POOL = Pool(blocks=10, block_tokens=32, step_tokens=64, max_running=4)

    def test_alone_it_always_may(self) -> None:
        assert self.POOL.admits(Need(now=300, end=320, unread=300), [])

    def test_it_waits_for_blocks(self) -> None:
        running = [Need(now=200, end=320, unread=0)]
        assert self.POOL.admits(Need(now=32, end=64, unread=32), running)
        assert not self.POOL.admits(Need(now=64, end=320, unread=64), running)

    def test_a_request_about_to_end_does_not_count_beyond_its_end(self) -> None:
        assert self.POOL.admits(Need(now=64, end=96, unread=64), [Need(now=200, end=201, unread=0)])

    def test_it_waits_for_a_place(self) -> None:
        small = Need(now=1, end=2, unread=1)
        assert self.POOL.admits(small, [small] * 3)
        assert not self.POOL.admits(small, [small] * 4)

    def test_those_who_read_their_prompts_never_run_out(self) -> None:
        """Random arrivals, with the pipeline's rules simulated: oldest first, one token to each who decodes."""
        for seed in range(30):
            random = Random(seed)
            waiting = [[prompt := random.randint(1, 200), prompt + random.randint(1, 120), prompt] for _ in range(30)]
            running: list[list[int]] = []
            while waiting or running:
                needs = [Need(now=now, end=end, unread=unread) for now, end, unread in running]
                if waiting and self.POOL.admits(Need(*waiting[0]), needs):
                    running.append(waiting.pop(0))
                    continue
                left = self.POOL.step_tokens
                decoding = [request for request in running if request[2] == 0]
                for request in decoding:
                    request[0] += 1
                left -= len(decoding)
                for request in running:
                    read = min(left, request[2])
                    request[2] -= read
                    left -= read
                if any(request[2] for request in running):
                    assert sum(self.POOL.blocks_for(request[0]) for request in running) <= self.POOL.blocks
                elif len(running) > 1:  # only those who decode are left: the pipeline preempts the youngest
                    while sum(self.POOL.blocks_for(request[0]) for request in running) > self.POOL.blocks:
                        waiting.insert(0, running.pop())
                        waiting[0][2] = waiting[0][0]
                running = [request for request in running if request[0] < request[1]]


class TestMemory:
    SHAPE = KVShape(layers=24, kv_heads=2, head_size=64)

    def test_bytes_per_token(self) -> None:
        assert self.SHAPE.bytes_per_token(2) == 12288

    def blocks(self, **changed: Any) -> int:
        usual: dict[str, Any] = {
            "bytes_per_block": 12288 * 32,
            "block_tokens": 32,
            "context_length": 4096,
            "max_concurrency": 64,
            "free_bytes": 10**12,
            "kv_cache_gb": None,
        }
        return kv_blocks(**usual | changed)

    def test_no_more_than_the_requests_can_fill(self) -> None:
        assert self.blocks() == 64 * 128
        assert self.blocks(max_concurrency=1, context_length=33) == 2
        assert self.blocks(kv_cache_gb=1000.0) == 64 * 128

    def test_a_fraction_of_free_memory(self) -> None:
        assert self.blocks(free_bytes=10**9) == int(KV_FRACTION * 10**9) // (12288 * 32)

    def test_what_was_asked_for(self) -> None:
        assert self.blocks(free_bytes=0, kv_cache_gb=0.5) == 5 * 10**8 // (12288 * 32)

    def test_at_least_one_block(self) -> None:
        assert self.blocks(free_bytes=0) == 1

    def test_available_memory_is_the_machines_without_control_groups(self, tmp_path: Path) -> None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text("MemTotal: 3000000 kB\nMemFree: 1 kB\nMemAvailable: 2000000 kB\n")
        assert available_bytes(tmp_path) == 2_000_000 * 1024

    def test_the_tightest_control_group_above_counts(self, tmp_path: Path) -> None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemAvailable: 2000000 kB\n")
        (tmp_path / "proc/self/cgroup").write_text("0::/machine/worker\n")
        for path, limit in (("", "max"), ("machine", str(10**9)), ("machine/worker", "max")):
            group = tmp_path / "sys/fs/cgroup" / path
            group.mkdir(parents=True, exist_ok=True)
            (group / "memory.max").write_text(limit + "\n")
            (group / "memory.current").write_text("600000000\n")
            (group / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
        assert available_bytes(tmp_path) == 10**9 - 6 * 10**8 + 10**8

    def test_version_1_control_groups(self, tmp_path: Path) -> None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemAvailable: 2000000 kB\n")
        # In a container the path is the host's, and the limit is found at the mount's root.
        (tmp_path / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/docker/abc\n")
        group = tmp_path / "sys/fs/cgroup/memory"
        group.mkdir(parents=True)
        (group / "memory.limit_in_bytes").write_text("500000000\n")
        (group / "memory.usage_in_bytes").write_text("400000000\n")
        (group / "memory.stat").write_text("total_inactive_file 0\n")
        assert available_bytes(tmp_path) == 10**8

    def test_this_machine_has_some(self) -> None:
        assert available_bytes() > 10**7

    def test_a_system_that_does_not_tell(self, tmp_path: Path) -> None:
        assert available_bytes(tmp_path) == 8 * 10**9


class TestStepTokens:
    def test_a_step_fits_80_ms(self) -> None:
        assert step_tokens(fixed_s=0.033, per_token_s=0.0007) == 128

    def test_a_slow_model_reads_at_least_32_a_step(self) -> None:
        assert step_tokens(fixed_s=0.5, per_token_s=0.01) == MIN_STEP_TOKENS

    def test_a_fast_one_has_a_bound(self) -> None:
        assert step_tokens(fixed_s=0.0, per_token_s=0.0) == MAX_STEP_TOKENS

    def test_measuring_gives_times_in_proportion_to_the_weights(self) -> None:
        def measure(parameters: int) -> float:
            fixed_s, per_token_s = measure_step_cost(
                hidden_size=256, ffn_size=1024, parameters=parameters, device="CPU", properties={}
            )
            return fixed_s + 1000 * per_token_s

        assert measure(10_000_000) == 0.0
        small, large = measure(50_000_000), measure(5_000_000_000)
        assert 0 < small * 10 < large


class TestGGUFHeader:
    def test_it_agrees_with_the_reference_reader(self, gguf: Path) -> None:
        header = read_gguf_header(gguf)
        reader = GGUFReader(gguf)
        assert header.architecture == "qwen2"
        assert header.number("context_length") == TINY.context_length
        assert header.metadata["tokenizer.ggml.tokens"] == TINY.vocab_size
        assert {name: (tensor.size, tensor.type) for name, tensor in header.tensors.items()} == {
            tensor.name: (tuple(int(length) for length in tensor.shape), tensor.tensor_type.name)
            for tensor in reader.tensors
        }
        last = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
        assert max(tensor.end or 0 for tensor in header.tensors.values()) == last

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.99])
    def test_a_file_cut_short_is_none(self, gguf: Path, tmp_path: Path, share: float) -> None:
        whole = gguf.read_bytes()
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(NotGGUF):
            read_gguf_header(cut)

    def test_garbage_is_none(self, gguf: Path, tmp_path: Path) -> None:
        head = bytearray(gguf.read_bytes()[:4000])
        for seed in range(200):
            random = Random(seed)
            garbage = bytearray(head)
            for _ in range(20):
                garbage[random.randrange(4, len(garbage))] = random.randrange(256)
            path = tmp_path / "garbage.gguf"
            path.write_bytes(garbage)
            with pytest.raises(NotGGUF):
                read_gguf_header(path)


class TestInspectModel:
    def test_what_a_gguf_says(self, gguf: Path) -> None:
        model = inspect_model(str(gguf))
        assert (model.context_length, model.vocab_size, model.hidden_size) == (1024, 512, 64)
        assert model.kv == KVShape(layers=2, kv_heads=2, head_size=16)
        assert model.parameters == TINY.parameters

    def refuse(self, path: Path | None) -> str:
        with pytest.raises(ConfigurationError) as refused:
            inspect_model(None if path is None else str(path))
        return str(refused.value)

    def test_no_model_at_all(self) -> None:
        assert "needs a model" in self.refuse(None)

    def test_no_such_file(self, tmp_path: Path) -> None:
        assert str(tmp_path / "none.gguf") in self.refuse(tmp_path / "none.gguf")

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"x")
        assert "*.gguf" in self.refuse(tmp_path / "model.safetensors")

    def test_a_damaged_file(self, gguf: Path, tmp_path: Path) -> None:
        (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:-1000])
        assert "cut short" in self.refuse(tmp_path / "cut.gguf")

    def test_another_architecture(self, tmp_path: Path) -> None:
        gguf_writer = GGUFWriter(tmp_path / "gemma.gguf", "gemma3")
        gguf_writer.write_header_to_file()
        gguf_writer.write_kv_data_to_file()
        gguf_writer.write_tensors_to_file()
        gguf_writer.close()
        message = self.refuse(tmp_path / "gemma.gguf")
        assert "gemma3" in message and "--engine transformers" in message

    def test_a_file_without_the_figures(self, tmp_path: Path) -> None:
        gguf_writer = GGUFWriter(tmp_path / "vocab-only.gguf", "llama")
        gguf_writer.write_header_to_file()
        gguf_writer.write_kv_data_to_file()
        gguf_writer.write_tensors_to_file()
        gguf_writer.close()
        assert "llama.context_length" in self.refuse(tmp_path / "vocab-only.gguf")

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        assert "no openvino_model.xml" in self.refuse(tmp_path)

    @pytest.mark.parametrize("config", ["", "[]", "{}", '{"hidden_size": "many"}'])
    def test_a_folder_whose_config_says_nothing(self, tmp_path: Path, config: str) -> None:
        for name in ("openvino_model.xml", "openvino_model.bin"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "config.json").write_text(config)
        assert "config.json" in self.refuse(tmp_path)


class TestShiftLogits:
    XML = (
        '<net><layers><layer id="4" name="lm_head" type="MatMul"/>'
        '<layer id="7" name="logits" type="Result" output_names="logits"><input><port id="0" precision="FP32">'
        "<dim>-1</dim><dim>9</dim></port></input></layer></layers>"
        '<edges><edge from-layer="4" from-port="2" to-layer="7" to-port="0"/></edges></net>'
    )

    def test_an_addition_comes_before_the_result(self, tmp_path: Path) -> None:
        (tmp_path / "m.xml").write_text(self.XML)
        (tmp_path / "m.bin").write_bytes(b"weights!")
        shift_logits(tmp_path / "m.xml")
        root = ET.parse(tmp_path / "m.xml").getroot()
        edges = [edge.attrib for edge in root.iter("edge")]
        assert {"from-layer": "9", "from-port": "2", "to-layer": "7", "to-port": "0"} in edges
        assert {"from-layer": "4", "from-port": "2", "to-layer": "9", "to-port": "0"} in edges
        constant = next(layer for layer in root.iter("layer") if layer.get("type") == "Const").find("data")
        assert constant is not None and constant.get("offset") == "8"
        assert (tmp_path / "m.bin").read_bytes() == b"weights!" + struct.pack("<f", LOGIT_SHIFT)

    def test_a_graph_without_logits_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.xml").write_text(self.XML.replace("logits", "hidden"))
        (tmp_path / "m.bin").write_bytes(b"")
        with pytest.raises(ValueError, match="no result named logits"):
            shift_logits(tmp_path / "m.xml")


def test_the_telling_line_of_an_openvino_error() -> None:
    error = RuntimeError("Exception from src/a.cpp:1:\nCheck 'x' failed at src/b.cpp:2:\nFile is empty\n\n")
    assert first_line(error) == "File is empty"
    assert first_line(RuntimeError("")) == "RuntimeError"
