"""Flags that users of other servers already type, translated to ours before typer sees them.

Owns one table from a foreign flag (vLLM, SGLang, llama.cpp) to what it means here, and the class of commands that apply it.
Rules: accept by meaning; a flag that changes nothing here prints one line; a value that cannot be honoured is an error
that names what to do instead; an unknown flag is an error that names the nearest one. Nothing is ignored silently.

Three things can happen to a foreign flag:

    Rename    another spelling of one of our flags, or a switch that stands for one
    Accept    the listed values mean what this build does anyway (a line says so where a note is given), others are refused
    Refuse    the feature is not here; the message names the replacement

and the ways to say how many tokens the MTP layer drafts, spread over up to four flags, are gathered into one number.

A setting comes from the command line, else from an environment variable (`openglm.env`), else from the file that `--config` names
(`openglm.cli.config_file`); all three are read with the same table.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import typer
from typer.core import TyperCommand

from openglm import env
from openglm.cli.config_file import read_config_file
from openglm.errors import ConfigError

POSITIONAL: Final = "MODEL"


@dataclass(frozen=True)
class Rename:
    """Stands for `to`. With `switch` the foreign flag takes no value and ours none either."""

    to: str
    switch: bool = False


@dataclass(frozen=True)
class Accept:
    """Means what happens anyway. `values` None: any value; empty: the flag takes none."""

    note: str = ""
    values: tuple[str, ...] | None = ()
    otherwise: str = ""


@dataclass(frozen=True)
class Refuse:
    """Cannot be honoured. `takes_value` keeps the rest of the line readable for the error."""

    instead: str
    takes_value: bool = True


@dataclass(frozen=True)
class Draft:
    """One of the flags that together say how many tokens to draft; `part` is what this one says."""

    part: str


Meaning = Rename | Accept | Refuse | Draft

_ONE_DEVICE: Final = "this build runs on one device; leave the flag out or give 1"
_MTP_ONLY: Final = "only the model's own MTP layer and prompt lookup (ngram) draft; say how far with --num-speculative-tokens"
_ALWAYS_PARSED: Final = "not needed: GLM's thinking and tool calls are always parsed"
_ONE_POLICY: Final = "requests run by priority, then first come, first served; leave the flag out"
_BY_PRIORITY: Final = "no effect: a request's `priority` is always honoured, lower values run first, equal ones first come, first served"
_KERNELS: Final = "no effect: kernels follow from the device"
_NO_LORA: Final = "adapters are not served yet; merge the adapter into a checkpoint and serve that"
_ONE_FORMAT: Final = "GLM has one format; leave the flag out"
_NO_SLEEP: Final = "weights cannot be put to sleep; stop the server instead"
_DIRECTORY: Final = "models are read from a directory; download the model and give its directory"
_GLM_PARSERS: Final = ("glm45", "glm46", "glm47", "glm4_moe", "glm4", "glm", "auto")

ALIASES: Final[Mapping[str, Meaning]] = {
    # model and naming
    "--model": Rename(POSITIONAL),
    "--model-path": Rename(POSITIONAL),
    "-m": Rename(POSITIONAL),
    "-a": Rename("--served-model-name"),
    "--alias": Rename("--served-model-name"),
    "--tokenizer": Refuse("the tokenizer is read from the model directory; put tokenizer.json there"),
    "--tokenizer-path": Refuse("the tokenizer is read from the model directory; put tokenizer.json there"),
    "--tokenizer-mode": Accept(values=("auto",), otherwise="there is one tokenizer; leave the flag out"),
    "-hf": Refuse(_DIRECTORY),
    "--hf-repo": Refuse(_DIRECTORY),
    "--revision": Refuse("models are read from a directory; download the revision you want and give its directory"),
    "--download-dir": Refuse(_DIRECTORY),
    "--load-format": Accept(values=("auto", "safetensors"), otherwise="only safetensors checkpoints are served"),
    "--trust-remote-code": Accept("no effect: code from a checkpoint never runs"),
    "--chat-template-content-format": Accept(values=("auto", "string", "openai"), otherwise="use auto"),
    # address, keys, logs
    "--uvicorn-log-level": Rename("--log-level"),
    "--disable-log-requests": Accept("no effect: prompts are never logged"),
    "--disable-log-stats": Accept("no effect: there is no periodic log"),
    "--log-level-http": Accept("no effect: there is one log; --log-level sets what it holds", values=None),
    "--disable-uvicorn-access-log": Rename("--no-access-log", switch=True),
    "--disable-access-log": Rename("--no-access-log", switch=True),
    "--log-requests": Refuse("prompts and answers are never logged; leave the flag out", takes_value=False),
    "--enable-log-requests": Refuse("prompts and answers are never logged; leave the flag out", takes_value=False),
    "--ssl-key-file": Rename("--ssl-keyfile"),
    "--ssl-cert-file": Rename("--ssl-certfile"),
    "--allow-credentials": Refuse("pages of other origins send keys in a header, never cookies; leave the flag out", takes_value=False),
    "--allowed-methods": Accept("no effect: the methods of the API are allowed to --allowed-origins", values=None),
    "--allowed-headers": Accept("no effect: the headers of the API are allowed to --allowed-origins", values=None),
    "--h11-max-incomplete-event-size": Rename("--limit-head-bytes"),
    "--h11-max-header-count": Rename("--limit-head-lines"),
    "--timeout-keep-alive": Rename("--limit-idle-s"),
    "--limit-concurrency": Rename("--limit-connections"),
    "--max-logprobs": Rename("--limit-top-logprobs"),
    # context, memory, batching
    "--context-length": Rename("--max-model-len"),
    "--ctx-size": Rename("--max-model-len"),
    "-c": Rename("--max-model-len"),
    "--max-running-requests": Rename("--max-num-seqs"),
    "--parallel": Rename("--max-num-seqs"),
    "-np": Rename("--max-num-seqs"),
    "--max-num-queued-reqs": Rename("--max-queued-requests"),
    "--chunked-prefill-size": Rename("--max-num-batched-tokens"),
    "--enable-chunked-prefill": Accept("no effect: prefill is always chunked"),
    "--no-enable-chunked-prefill": Refuse("prefill is always chunked; --max-num-batched-tokens sets the size", takes_value=False),
    "--max-total-tokens": Rename("--kv-cache-tokens"),
    "--batch-size": Rename("--max-num-batched-tokens"),
    "-b": Rename("--max-num-batched-tokens"),
    "--num-gpu-blocks-override": Refuse("say how many tokens the KV cache holds with --kv-cache-tokens, 64 a block"),
    "--kv-cache-memory-bytes": Refuse("say how many tokens the KV cache holds with --kv-cache-tokens; the banner shows what they take"),
    "--device-memory-utilization": Rename("--gpu-memory-utilization"),
    "--hicache-size": Rename("--kv-offloading-size"),
    "--hicache-ratio": Refuse("say how large the host tier may be, in GiB, with --kv-offloading-size"),
    "--enable-hierarchical-cache": Accept("no effect of its own: the host tier is there when --kv-offloading-size (GiB) is given"),
    "--kv-offloading-backend": Accept(values=("native",), otherwise="there is one host tier; leave the flag out"),
    "--cache-ram": Refuse("say how large the host tier may be, in GiB, with --kv-offloading-size"),
    "--block-size": Accept(values=("64",), otherwise="pages hold 64 tokens; leave the flag out"),
    "--page-size": Accept(values=("64",), otherwise="pages hold 64 tokens; leave the flag out"),
    "--disable-radix-cache": Rename("--no-enable-prefix-caching", switch=True),
    "--no-cache-prompt": Rename("--no-enable-prefix-caching", switch=True),
    "--n-cpu-moe": Refuse("say how many GiB of experts stay in host memory with --cpu-offload-gb"),
    "--kt-num-gpu-experts": Refuse("say how many GiB of experts stay in host memory with --cpu-offload-gb"),
    "--cache-type-k": Refuse("keys and values share one type: --kv-cache-dtype"),
    "--cache-type-v": Refuse("keys and values share one type: --kv-cache-dtype"),
    "-ctk": Refuse("keys and values share one type: --kv-cache-dtype"),
    "-ctv": Refuse("keys and values share one type: --kv-cache-dtype"),
    "--cpu-moe": Refuse("say how many GiB of experts stay in host memory with --cpu-offload-gb", takes_value=False),
    # parallelism
    **dict.fromkeys(
        (
            "--tensor-parallel-size", "-tp", "--tp-size", "--tp", "--pipeline-parallel-size", "-pp", "--pp-size", "--pp",
            "--data-parallel-size", "-dp", "--dp-size", "--dp", "--ep-size", "--ep", "--expert-parallel-size", "--nnodes",
        ),
        Accept(values=("1",), otherwise=_ONE_DEVICE),
    ),
    "--node-rank": Accept(values=("0",), otherwise=_ONE_DEVICE),
    "--base-gpu-id": Accept(values=("0",), otherwise="choose the device with --device, for example cuda:1"),
    "--enable-expert-parallel": Accept("no effect on one device"),
    "--enable-dp-attention": Accept("no effect on one device"),
    "--dist-init-addr": Refuse(_ONE_DEVICE),
    "--master-addr": Refuse(_ONE_DEVICE),
    "--master-port": Refuse(_ONE_DEVICE),
    "--enable-sleep-mode": Refuse(_NO_SLEEP, takes_value=False),
    "--enable-memory-saver": Refuse(_NO_SLEEP, takes_value=False),
    "--sleep-idle-seconds": Refuse(_NO_SLEEP),
    "--disaggregation-mode": Accept(values=("null",), otherwise="prefill/decode disaggregation is not here yet; leave the flag out"),
    "--kv-transfer-config": Refuse("prefill/decode disaggregation is not here yet; leave the flag out"),
    # kernels and execution
    "-q": Rename("--quantization"),
    "--disable-cuda-graph": Rename("--enforce-eager", switch=True),
    "--disable-shared-experts-fusion": Accept("no effect: where the shared expert lies follows from its format and its device"),
    "--no-async-scheduling": Rename("--disable-overlap-schedule", switch=True),
    "--async-scheduling": Accept("no effect: on a GPU, steps are overlapped anyway"),
    "--attention-backend": Accept(_KERNELS, values=None),
    "--moe-backend": Accept(_KERNELS, values=None),
    "--moe-runner-backend": Accept(_KERNELS, values=None),
    "--moe-a2a-backend": Accept(_KERNELS, values=None),
    "--enable-deterministic-inference": Rename("--deterministic", switch=True),
    "--random-seed": Rename("--seed"),
    "-s": Rename("--seed"),
    "-t": Rename("--threads"),
    "--stream-interval": Accept(values=("1",), otherwise="every step is streamed; leave the flag out"),
    "--scheduling-policy": Accept(_BY_PRIORITY, values=("fcfs", "priority"), otherwise=_ONE_POLICY),
    "--schedule-policy": Accept(_BY_PRIORITY, values=("fcfs", "lpm"), otherwise=_ONE_POLICY),
    "--enable-priority-scheduling": Refuse(
        "priorities are always on, and here lower values run first (higher ones in SGLang); leave the flag out", takes_value=False
    ),
    "--schedule-low-priority-values-first": Accept("no effect: lower values always run first"),
    # parsing, reports, adapters
    "--tool-call-parser": Accept(_ALWAYS_PARSED, values=_GLM_PARSERS, otherwise=_ONE_FORMAT),
    "--reasoning-parser": Accept(_ALWAYS_PARSED, values=_GLM_PARSERS, otherwise=_ONE_FORMAT),
    "--reasoning-format": Accept(
        values=("auto", "deepseek"), otherwise="thinking is never part of the content; --reasoning-field says where it goes"
    ),
    "--enable-auto-tool-choice": Accept(_ALWAYS_PARSED),
    "--jinja": Accept(_ALWAYS_PARSED),
    "--enable-prompt-tokens-details": Accept("no effect: usage always counts cached tokens"),
    "--enable-cache-report": Accept("no effect: usage always counts cached tokens"),
    "--enable-metrics": Accept("no effect: /metrics is always there"),
    "--metrics": Accept("no effect: /metrics is always there"),
    "--enable-trace": Accept("no effect of its own: traces go where --otlp-traces-endpoint says"),
    "--sampling-defaults": Rename("--generation-config"),
    "--preferred-sampling-params": Rename("--override-generation-config"),
    "--chat-template-kwargs": Rename("--default-chat-template-kwargs"),
    "--shutdown-grace-period": Rename("--shutdown-timeout"),
    "--enable-lora": Refuse(_NO_LORA, takes_value=False),
    "--lora-modules": Refuse(_NO_LORA),
    "--lora-paths": Refuse(_NO_LORA),
    "--lora": Refuse(_NO_LORA),
    # drafts
    "--speculative-config": Draft("json"),
    "--speculative-num-steps": Draft("steps"),
    "--speculative-num-draft-tokens": Draft("verified"),
    "--speculative-algorithm": Draft("method"),
    "--speculative-eagle-topk": Accept(values=("1",), otherwise="drafts form one chain; leave the flag out or give 1"),
    "--speculative-draft-model-path": Refuse(_MTP_ONLY),
    "--spec-method": Draft("method"),
    "--spec-type": Draft("method"),
    "--spec-model": Refuse(_MTP_ONLY),
    "--spec-tokens": Draft("steps"),
    "--spec-draft-n-max": Draft("steps"),
    "--speculative-adaptive": Accept("no effect: the number of drafts adapts unless --num-speculative-tokens fixes it"),
}  # fmt: skip

_MTP_METHODS: Final = ("mtp", "glm4_moe_mtp", "deepseek_mtp", "eagle", "nextn", "draft-mtp")
_NGRAM_METHODS: Final = ("ngram", "ngram-simple")
_DRAFT_FLAGS: Final = {
    "prompt_lookup_max": "--prompt-lookup-max",
    "prompt_lookup_min": "--prompt-lookup-min",
}
_SEVERAL_WORDS: Final = ("--served-model-name",)  # vLLM: --served-model-name a b c


@dataclass
class Translation:
    """Our own command line, and what to tell the user about theirs."""

    parts: list[tuple[str, ...]] = field(default_factory=list)
    """A flag with its value, or a word without a flag."""
    notes: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    num_positionals: int = 0
    draft_steps: int | None = None

    @property
    def arguments(self) -> list[str]:
        """All of it, as words."""
        return [word for part in self.parts for word in part]

    def add(self, flag: str, *values: str) -> None:
        """One of our flags."""
        self.flags.add(flag)
        self.parts.append((flag, *values))

    def add_positional(self, word: str) -> None:
        """A word without a flag."""
        self.num_positionals += 1
        self.parts.append((word,))

    def value_of(self, flag: str) -> str | None:
        """The last value that was given for a flag."""
        return next((part[1] for part in reversed(self.parts) if part[0] == flag and len(part) > 1), None)


def translate(words: Iterable[str], own: Mapping[str, bool]) -> Translation:
    """Rewrite a command line. `own` maps each flag of the command to whether it takes a value. Raises `ConfigError`."""
    result = Translation()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            result.parts.append((word, *rest))
            break
        if not word.startswith("-") or word == "-":
            result.add_positional(word)
            continue
        flag, equals, value = word.partition("=")
        flag = _dashed(flag)
        dotted, _, key = flag.partition(".")
        if flag in own:
            if not own[flag]:
                if equals:
                    raise ConfigError(f"{flag} takes no value")
                result.add(flag)
                continue
            result.add(flag, value if equals else _next(flag, rest))
            while flag in _SEVERAL_WORDS and rest and not rest[0].startswith("-"):
                result.add(flag, rest.pop(0))
        elif flag in ALIASES and _applies(ALIASES[flag], own):
            meaning = ALIASES[flag]
            taken = (value if equals else _next(flag, rest)) if _takes_value(meaning) else ""
            _apply(flag, meaning, taken, own, result)
        elif dotted == "--speculative-config" and key and "--num-speculative-tokens" in own:
            _draft_setting(flag, key.replace("-", "_"), value if equals else _next(flag, rest), own, result)
        else:
            raise _unknown(flag, own)
    if result.draft_steps is not None and "--num-speculative-tokens" not in result.flags:
        result.add("--num-speculative-tokens", str(result.draft_steps))
    return result


def _apply(flag: str, meaning: Meaning, value: str, own: Mapping[str, bool], result: Translation) -> None:
    match meaning:
        case Rename(to) if to == POSITIONAL and "--model" not in own:
            result.add_positional(value)
        case Rename(to) if to == POSITIONAL:
            result.add("--model", value)
        case Rename(to, switch):
            result.add(to, *([] if switch else [value]))
        case Accept(note, values, otherwise):
            if values and value.lower() not in values:
                raise ConfigError(f"{flag} {value:.40}: {otherwise}")
            if note:
                result.notes.append(f"{flag}: {note}")
        case Refuse(instead):
            raise ConfigError(f"{flag}: {instead}")
        case Draft(part):
            _draft(flag, part, value, own, result)


def _draft(flag: str, part: str, value: str, own: Mapping[str, bool], result: Translation) -> None:
    if part == "json":
        try:
            settings = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{flag}: not valid JSON: {error}") from None
        if not isinstance(settings, dict):
            raise ConfigError(f'{flag}: expected an object such as {{"method": "mtp", "num_speculative_tokens": 1}}')
        for key, setting in settings.items():
            _draft_setting(flag, key, str(setting), own, result)
    elif part == "method":
        if value.lower() in _NGRAM_METHODS:
            _add_draft_flag(flag, "--speculative-method", "ngram", own, result)
        elif value.lower() not in _MTP_METHODS:
            raise ConfigError(f"{flag} {value:.40}: {_MTP_ONLY}")
    elif part == "steps":
        result.draft_steps = _whole(flag, value)
    elif result.draft_steps is None:  # `verified` counts the token before the drafts too; --speculative-num-steps is exact
        result.draft_steps = max(0, _whole(flag, value) - 1)


def _draft_setting(flag: str, key: str, value: str, own: Mapping[str, bool], result: Translation) -> None:
    if key == "method":
        _draft(flag, "method", value, own, result)
    elif key == "num_speculative_tokens":
        _draft(flag, "steps", value, own, result)
    elif key in _DRAFT_FLAGS:
        _add_draft_flag(flag, _DRAFT_FLAGS[key], str(_whole(flag, value)), own, result)
    else:
        raise ConfigError(f"{flag}: {key!r} is not supported; {_MTP_ONLY}")


def _add_draft_flag(flag: str, to: str, value: str, own: Mapping[str, bool], result: Translation) -> None:
    if to not in own:
        raise ConfigError(f"{flag} {value:.40}: this command drafts with the MTP layer; glm serve takes ngram")
    if to not in result.flags:
        result.add(to, value)


def _whole(flag: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"{flag} must be a whole number, got {value!r:.40}")
    return int(value)


def _applies(meaning: Meaning, own: Mapping[str, bool]) -> bool:
    """Whether a command has what the flag stands for."""
    if isinstance(meaning, Rename):
        return meaning.to in own or meaning.to == POSITIONAL
    return "--num-speculative-tokens" in own


def _takes_value(meaning: Meaning) -> bool:
    match meaning:
        case Rename(_, switch):
            return not switch
        case Accept(_, values):
            return values != ()
        case Refuse(_, takes_value):
            return takes_value
        case Draft():
            return True


def _next(flag: str, rest: list[str]) -> str:
    if not rest:
        raise ConfigError(f"{flag} needs a value")
    return rest.pop(0)


def _dashed(flag: str) -> str:
    """`--max_model_len` is accepted for `--max-model-len`, as in vLLM; what follows a dot is a key of its own."""
    name, dot, key = flag.partition(".")
    return (name.replace("_", "-") if name.startswith("--") else name) + dot + key


def _unknown(flag: str, own: Mapping[str, bool]) -> ConfigError:
    known = [*own, *(alias for alias, meaning in ALIASES.items() if _applies(meaning, own))]
    near = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(f"unknown option {flag:.60}; {hint}--help lists all options")


class TranslatedCommand(TyperCommand):
    """A command that takes foreign flags, environment variables and a file of flags as well as its own flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Translate, add what the line leaves to the environment and to the file, then let typer parse."""
        own = {name: not option.is_flag for option in self._options() for name in (*option.opts, *option.secondary_opts)}
        line = translate(args, {**own, "--help": False, "-h": False})
        arguments, notes = line.arguments, line.notes
        if not line.flags & {"--help", "-h"}:
            environment = self._environment()
            path = line.value_of("--config") or environment.value_of("--config")
            file = translate(read_config_file(path, own), own) if path is not None else Translation()
            arguments = self._layered(line, environment, file)
            notes = [*notes, *(f"{path}: {note}" for note in file.notes)]
        for note in notes:
            typer.echo(f"glm: {note}", err=True)
        return super().parse_args(ctx, arguments)

    def _options(self) -> list[Any]:
        return [param for param in self.params if param.param_type_name == "option"]

    def _layered(self, *layers: Translation) -> list[str]:
        """The words of the first layer, and of each later one what no earlier layer says."""
        option_of = {name: option.name for option in self._options() for name in (*option.opts, *option.secondary_opts)}
        takes_model = any(param.param_type_name == "argument" and param.name == "model" for param in self.params)
        first, *others = layers
        arguments = first.arguments
        said = {option_of.get(flag) for flag in first.flags}
        has_model = bool(first.num_positionals)
        for layer in others:
            for part in reversed(layer.parts):
                if part[0] in option_of:
                    if option_of[part[0]] not in said:
                        arguments[:0] = part
                elif takes_model and not has_model:
                    arguments[:0] = part
            said |= {option_of.get(flag) for flag in layer.flags}
            has_model = has_model or bool(layer.num_positionals)
        return arguments

    def _environment(self) -> Translation:
        """What the variables say."""
        said = Translation()
        for option in self._options():
            flag = option.opts[0]
            text = env.flag_values([flag]).get(flag)
            if text is None:
                continue
            if option.is_flag:
                for word in _switch(flag, option.secondary_opts, text):
                    said.add(word)
            else:
                for value in text.split(",") if option.multiple else [text]:
                    said.add(flag, value.strip())
        model = env.flag_values(["--model"]).get("--model")
        if model and "--model" not in said.flags:
            said.add_positional(model)
        return said


def _switch(flag: str, opposites: list[str], text: str) -> list[str]:
    if text.lower() in ("1", "true", "yes", "on"):
        return [flag]
    if text.lower() in ("0", "false", "no", "off"):
        return opposites[:1]
    raise ConfigError(f"{env.variable_of(flag)} must be 1 or 0, got {text!r:.40}")
