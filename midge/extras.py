"""Names the extra of Midge that installs a missing library."""

_BRINGS = {
    "aiomqtt": "aggregator",
    "cryptography": "security",
    "jinja2": "demo",
    "mlflow": "mlflow",
    "onnx": "export",
    "onnxscript": "export",
    "safetensors": "aggregator",
    "ray": "ray",
    "rich": "demo",
    "shtab": "completion",
    "sklearn": "demo",
    "starlette": "page",
    "torch": "torch",
    "uvicorn": "page",
}


def how_to_get(error: ModuleNotFoundError) -> str | None:
    """The advice for a failed import of one of our optional libraries; None for others."""
    library = (error.name or "").partition(".")[0]
    if library not in _BRINGS:
        return None
    return f'This needs {library}, which is not installed here: pip install "midge[{_BRINGS[library]}]"'
