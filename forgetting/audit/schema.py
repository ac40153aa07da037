"""``verdict.json``: all that an audit found, from which report, card and table are made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Call = Literal["REGRESSED", "RETAINED", "INCONCLUSIVE"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Settings(_Part):
    """What was decided before the models were compared.

    The default margins are conventions, set by what can be decided: of the 1,600 items of a usual panel of which 10%
    flip, the mean has a standard error of .8 points, and a test at 5% with a power of .8 needs 2.5 to 2.9 of them: 3
    points is about the smallest loss that such a panel rules out. 10 points on any single capability is what 200 items
    rule out at that rate of flips; the mean alone would hide one capability that is lost behind many that are kept. An
    application that knows its own tolerance sets it.

    Attributes:
        alpha: Rate of false verdicts (about: the tests are not all exact): of REGRESSED where nothing changed, and of
            RETAINED where the loss is the margin.
        margin: Largest loss that counts as none, as a share of items: of the mean over capabilities, and of each
            capability's own verdict.
        worst: A loss of any single capability that RETAINED must rule out, of one that is not judged too, unless the
            base is shown to have less than that above chance.
        rise: Largest rise of a perplexity that counts as none: of the bits per byte (or word) of its documents, as a
            share of the base's. RETAINED must rule it out of every such capability.
        power: Of the numbers of items that would decide.
        sequential: Whether the verdict was looked for after parts of the items.
        limit: Items per lm-eval task, where fewer than all were asked for.
        cluster: The documents' field that was named as the context that items share.
    """

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    margin: float = Field(default=0.03, gt=0, lt=1)
    worst: float = Field(default=0.10, gt=0, le=1)
    rise: float = Field(default=0.03, gt=0, lt=1)
    power: float = Field(default=0.8, gt=0, lt=1)
    sequential: bool = False
    limit: int | None = None
    cluster: str | None = None


class Side(_Part):
    """One of the two models, or logs of it.

    Attributes:
        name: As it was given.
        kind: Full weights, an adapter on the base, or logs.
        sha256: Of the weights in fp32; of logs, of the files.
        parameters: Weights, counted once where they are shared.
        architecture: The class that its configuration names.
        adapter: peft's configuration, where it is one.
        card: What the folder's README says of itself: ``license``, ``datasets``, ``base_model`` ...
        training: What its folder says of how it was trained (``trainer_state.json``).
    """

    name: str
    kind: Literal["model", "adapter", "samples"]
    sha256: str
    parameters: int | None = None
    architecture: str | None = None
    adapter: dict[str, Any] | None = None
    card: dict[str, Any] = {}
    training: dict[str, Any] = {}


class Noise(_Part):
    """Flips of the base model against itself at another batch size, on the same items.

    Attributes:
        lost, gained: Items.
        n: Items of the A/A run.
        largest: Largest change of a choice's log-probability, nats; ``None`` where the model writes answers.
        p_beyond: McNemar's exact two-sided p-value of the hypothesis that the fine-tune flips as many items as the A/A
            run; 1 where it does not flip more.
    """

    lost: int
    gained: int
    n: int
    largest: float | None
    p_beyond: float


class Difference(_Part):
    """Tuned − base.

    Attributes:
        value: A share of the items, or in the metric's unit (of a perplexity, nats per word or byte).
        low, high: Interval over items at 1 − alpha, of this capability alone; ``None`` where items do not vary.
        method: How the limits were found.
        effective: Independent right-or-wrong items that would have the same variance; ``None`` where
            outcomes are no scores in [0, 1].
    """

    value: float
    low: float | None
    high: float | None
    method: str
    effective: float | None = None


class Capability(_Part):
    """One capability.

    Attributes:
        n, clusters: Items, and the contexts that they share (``None``: none is shared).
        base, tuned: Mean over items.
        retention: (tuned − chance) / (base − chance); ``None`` where the base is not above chance by two errors.
        lost, gained: Items right before and wrong after (1→0), and the reverse; ``None`` where items are not right or
            wrong.
        p_mcnemar: McNemar's exact p-value of these; where items share a context it is shown, not used.
        p_equal, test: p-value of the hypothesis of no difference, and the test it is of.
        p_holm: The same after Holm's correction over the capabilities and their mean; ``None`` where it is not judged.
        p_margin, p_gain: The two one-sided tests of TOST, against −margin and +margin; of a perplexity, of the
            hypotheses that its bits rose, and fell, by the share ``rise`` or more.
        rise: Of a perplexity, how much its bits rose, as a share of the base's; ``None`` of others.
        p_worst: Of the hypothesis that the loss is ``worst`` or more.
        p_chance: Of the hypothesis that the base is ``worst`` or more above chance: that it has so much to lose.
        verdict: ``None`` where it is not judged.
        why: In one sentence.
        items_to_decide: Items at which its own verdict would be decided with the power asked for, at the rates of
            flips that were seen; ``None`` where it is decided, or no number decides.
    """

    name: str
    metric: str
    version: str
    chance: float
    n: int
    clusters: int | None
    base: float
    tuned: float
    retention: float | None
    difference: Difference
    lost: int | None
    gained: int | None
    p_mcnemar: float | None
    p_equal: float | None
    test: str
    p_holm: float | None = None
    p_margin: float | None = None
    p_gain: float | None = None
    rise: Difference | None = None
    p_worst: float | None = None
    p_chance: float | None = None
    noise: Noise | None = None
    verdict: Call | None = None
    why: str = ""
    items_to_decide: int | None = None


class Mean(_Part):
    """The mean over the judged capabilities, each counting the same. The p-values are as of a capability."""

    capabilities: int
    n: int
    base: float
    tuned: float
    difference: Difference
    p_equal: float
    p_holm: float
    p_margin: float
    p_gain: float


class Look(_Part):
    """One look of a sequential audit: its items, its share of alpha, and what it concluded."""

    items: int
    of: int
    alpha: float
    verdict: Call


class OwnTask(_Part):
    """What was fine-tuned for: learned or not, it is no part of the verdict. Fields as of a capability."""

    name: str
    metric: str
    n: int
    clusters: int | None = None
    base: float
    tuned: float
    difference: Difference


class Verdict(_Part):
    """All that an audit found.

    Attributes:
        verdict, why: The conclusion, and the reason in one sentence.
        items_to_decide: Items per capability at which an INCONCLUSIVE audit would be decided.
        prompts_sha256: Of all that was asked.
        inputs_sha256: Of the other texts that were given: ``own_data`` (the items that are scored), ``general_text``,
            ``safety_prompts``, as far as there are any (:func:`forgetting.audit.extras.input_digests`).
        code: Versions, git state, SHA-256 of the package's files, and the command.
        seconds: What the audit took.
        drift, behaviour, advice: See :class:`forgetting.audit.extras.Extras`; ``None`` where they were not measured.
        diagnosis: :class:`forgetting.audit.diagnosis.Diagnosis`; ``None`` where it was not asked for.
    """

    schema_version: Literal[2] = 2
    verdict: Call
    why: str
    items_to_decide: int | None
    settings: Settings
    base: Side
    tuned: Side
    capabilities: list[Capability]
    mean: Mean | None
    own: OwnTask | None = None
    looks: list[Look] = []
    notes: list[str] = []
    prompts_sha256: str
    inputs_sha256: dict[str, str] = {}
    code: dict[str, Any]
    seconds: float
    drift: dict[str, Any] | None = None
    behaviour: dict[str, Any] | None = None
    advice: dict[str, Any] | None = None
    diagnosis: dict[str, Any] | None = None
