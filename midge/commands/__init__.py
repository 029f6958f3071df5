"""The commands: arguments in, text and an exit code out. Their work is done in other packages."""

from midge.commands import (
    advise,
    aggregate,
    auditing,
    broker,
    clean,
    compare,
    completion,
    config,
    conform,
    decode,
    demo,
    device,
    explain,
    fleet,
    forgetting,
    helper,
    init,
    membership,
    mlflow,
    model,
    pause,
    renormalising,
    replay,
    report,
    signing,
    site_gateway,
    status,
    store,
    survey,
    watch,
)

COMMANDS = (
    demo,
    survey,
    advise,
    init,
    aggregate,
    device,
    broker,
    helper,
    site_gateway,
    config,
    completion,
    signing,
    membership,
    forgetting,
    auditing,
    store,
    model,
    mlflow,
    status,
    watch,
    pause,
    renormalising,
    explain,
    replay,
    report,
    compare,
    decode,
    conform,
    fleet,
    clean,
)

ALIASES = {
    "device conform": ["conform"],
    **{f"device {verb}": [f"device {verb}"] for verb in membership.VERBS + forgetting.VERBS},
}
"""Commands of two words: `midge device VERB` acts on a device. `device-add` and its like are older names."""


def problems() -> tuple[type[Exception], ...]:
    """Errors that the user can fix: shown as one sentence, without a traceback."""
    from midge.commands.parts import Problem  # noqa: PLC0415
    from midge.configuration.toml_file import SettingsError  # noqa: PLC0415
    from midge.running import user_facing_errors  # noqa: PLC0415

    return (*user_facing_errors(), Problem, SettingsError)
