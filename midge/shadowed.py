"""Our packages have plain names, and a user's own file of such a name would be imported in their place."""

from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("wire", "storage", "broker", "iot_client", "aggregator", "sensor_fleet")


def refuse_shadows() -> None:
    """See that each of our packages is the one that lies beside this one.

    Raises:
        ImportError: a file or folder of the user's hides one; the message says which, and what to do.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin != home / name / "__init__.py":
            found = spec.submodule_search_locations if spec is not None else None
            where = origin or (next(iter(found), "nowhere") if found else "nowhere")
            raise ImportError(
                f"Midge needs its own package {name!r}, and Python finds {where} in its place: "
                "rename that file, or run from another directory."
            )
