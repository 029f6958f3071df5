"""Which extra of Midge brings a library that is not there."""

_BRINGS = {
    "aiomqtt": "aggregator",
    "cryptography": "security",
    "jinja2": "demo",
    "safetensors": "aggregator",
    "ray": "ray",
    "rich": "demo",
    "sklearn": "demo",
    "torch": "torch",
}


def how_to_get(error: ModuleNotFoundError) -> str | None:
    """What to say where an import failed for one of our optional libraries; None where it was another's."""
    library = (error.name or "").partition(".")[0]
    if library not in _BRINGS:
        return None
    return f'This needs {library}, which is not installed here: pip install "midge[{_BRINGS[library]}]"'
