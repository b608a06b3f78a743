"""Options of a preference-alignment task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, create_model, model_validator

from relent.data.options import ImagePairOptions, PairFileOptions
from relent.tasks.options import Strict, TaskOptions


class PreferenceData(Strict):
    """Texts, prompts, and pairs of continuations."""

    vocabulary: int = Field(24, ge=4, le=65536, description="Tokens, the end of text among them.")
    length: int = Field(4, ge=1, le=4096, description="Tokens of a completion, at most.")
    prompt_words: int = Field(2, ge=1, le=4096, description="Words of a prompt, at most.")
    prompts: int = Field(200, ge=3, description="Prompts: the most frequent beginnings of texts.")
    validation_prompts: int = Field(16, ge=1, description="Of these, prompts of the validation pairs.")
    test_prompts: int = Field(8, ge=1, description="Of these, prompts on which runs are scored.")
    pairs: int = Field(4000, ge=2, description="Training pairs.")
    held_out_pairs: int = Field(1000, ge=2, description="Pairs of validation and test prompts each.")
    row: int = Field(64, ge=4, description="Tokens of a row of packed texts, for the base model.")

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, at most, the begin of text among them."""
        return 1 + self.prompt_words

    @model_validator(mode="after")
    def _leaves_training_prompts(self) -> PreferenceData:
        if self.validation_prompts + self.test_prompts >= self.prompts:
            raise ValueError("validation_prompts and test_prompts must leave prompts to train on; raise `prompts`")
        return self


DataOptions = PreferenceData | PairFileOptions | ImagePairOptions
OF_MODULE: dict[str, type[DataOptions]] = {
    "relent.data.preferences": PreferenceData,
    "relent.data.preference_files": PairFileOptions,
    "relent.data.image_preferences": ImagePairOptions,
}
"""Options of a data set by the module that prepares it."""


def data_options(data: Mapping[str, Any]) -> DataOptions:
    """The options of a data set, whichever kind it is."""
    if "side" in data:
        return ImagePairOptions(**data)
    return PairFileOptions(**data) if {"path", "ratings"} & data.keys() else PreferenceData(**data)


class Lora(Strict):
    """Low-rank adapters; only they are trained (Hu et al., arXiv 2106.09685)."""

    rank: int = Field(ge=1, le=4096, description="Rank r.")
    alpha: float = Field(gt=0, description="The update is scaled by alpha / rank.")
    target_modules: list[str] | Literal["all-linear"] = Field(description="Layers that get an adapter.")


class LoadingOptions(Strict):
    """What both kinds of network have."""

    dtype: Literal["float32", "bfloat16", "float64"] = Field("float32", description="Type of the weights.")
    attention: Literal["eager", "sdpa"] = Field("sdpa", description="Implementation of attention.")
    checkpoint_activations: bool = Field(False, description="Recompute activations in the backward pass.")
    lora: Lora | None = Field(None, description="Train low-rank adapters only.")


class ScratchOptions(LoadingOptions):
    """A network from scratch."""

    architecture: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Model type of `transformers`, such as gpt2.")
    config: dict[str, Any] = Field({}, description="Its settings, as `transformers` names them.")


class PretrainedOptions(LoadingOptions):
    """A trained network."""

    path: str = Field(min_length=1, description="Folder, or hub name that is in the local cache.")
    revision: str = Field("main", description="Commit or branch of a hub name; pin a commit.")


class EvaluationOptions(Strict):
    """How policies are judged."""

    exact: bool = Field(True, description="Enumerate every completion; else estimate from samples.")
    samples: int = Field(256, ge=2, description="Samples a test prompt, where it is estimated.")
    beta: float = Field(1.0, gt=0, description="β of the task: policies are ranked by E[r] − β·KL to the reference.")
    distinct: int = Field(100, ge=1, description="Samples of which the expected number of different ones is told.")


class Options(TaskOptions):
    """Options of one scale."""

    data: DataOptions
    model: ScratchOptions | PretrainedOptions
    evaluation: EvaluationOptions = EvaluationOptions()

    @classmethod
    def of(cls, data_module: str) -> type[Options]:
        """With the data options of the module alone, so that an error speaks of them."""
        return create_model("Options", __base__=cls, data=(OF_MODULE.get(data_module, PreferenceData), ...))

    @model_validator(mode="after")
    def _can_be_judged(self) -> Options:
        if "evaluation" not in self.model_fields_set or not self.evaluation.exact:
            return self
        if isinstance(self.data, PairFileOptions):
            raise ValueError("completions of pairs of one's own cannot be enumerated; set evaluation.exact to false")
        if isinstance(self.data, ImagePairOptions):
            raise ValueError("images cannot be enumerated; set evaluation.exact to false")
        size = self.data.vocabulary**self.data.length
        if size > 2_000_000:
            raise ValueError(
                f"data.vocabulary and data.length make {size:.1e} completions, too many to enumerate; lower them, or"
                " set evaluation.exact to false"
            )
        return self
