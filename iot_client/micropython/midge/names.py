"""Names in headers: the place of a name is its number on the wire. Append; never move one."""

# fmt: off
NAMES = (  # of constants only: frozen, it lies in ROM
    "kind", "update", "offer", "chunk", "fetch", "statistics", "report", "hello", "receipt", "aggregator",
    "announcement", "part", "succession", "outbox", "first", "seq", "lineage", "generation", "base", "schema_hash",
    "tensors", "codec", "size", "sha256", "examples", "steps", "seconds", "plan", "metrics", "parts", "sealed",
    "version", "span", "channel", "names", "missing", "state", "next", "wakes", "capabilities", "verdict", "why",
    "retry_after", "repeat", "weight", "staleness", "hi", "settled", "grants", "boot", "step", "revision",
    "learning_rate", "local_steps", "epochs", "batch_size", "proximal", "feedback", "narrow_codec", "fewest_steps",
    "most_steps", "evaluate", "seed", "name", "channels", "share", "interval", "bytes_per_month", "joules_per_month",
    "federation", "phase", "digest", "frames", "moments", "participation", "issued", "expires", "parent", "epoch",
    "seal_key", "byte_rate", "devices", "body", "signatures", "chain", "number", "key", "since", "loss", "accuracy",
    "cores", "machine", "memory_mib", "rows_per_second", "steps_per_second", "link", "features", "token", "claim",
    "to", "base_digest", "log", "health", "accepted", "verdicts", "alarms", "waits", "confided", "confides", "hidden",
    "hides", "rest", "trouble", "largest", "smallest_chunk", "class", "micro_codec", "verifies", "vouch", "alias",
    "keeps", "entry", "masking", "helper", "where", "where_share", "weigh_examples",
)
# fmt: on
