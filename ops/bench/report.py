"""The numbers of all rounds as JSON and as Markdown tables."""

import statistics
from pathlib import Path

from cases import CASES

MEBIBYTE = 1 << 20
# Waiting for the core, against running: others were there, and left cold caches behind. Above it the reader should know.
QUIET = 0.05
DASH = "-"
FIELDS = (
    "cpu_us_per_request", "p50_us", "p99_us", "rss_bytes", "pss_bytes", "ready_ms", "waited_share",
    "redis_round_trips", "redis_commands",
)  # fmt: skip
# Columns behind that of the proxy: heading, and how a row shows it.
COLUMNS = (
    ("CPU us a request", lambda row, base: spread(row["cpu_us_per_request"])),
    ("x {base}", lambda row, base: f"{cpu_of(row) / cpu_of(base):.2f}"),
    ("p50 us", lambda row, base: f"{row['p50_us']['median']:.0f}"),
    ("p99 us", lambda row, base: f"{row['p99_us']['median']:.0f}"),
    ("RSS MiB", lambda row, base: f"{row['rss_bytes']['median'] / MEBIBYTE:.1f}"),
    ("PSS MiB", lambda row, base: f"{row['pss_bytes']['median'] / MEBIBYTE:.1f}"),
    ("ready ms", lambda row, base: f"{row['ready_ms']['median']:.0f}"),
)
REDIS_COLUMNS = tuple(
    (f"Redis {what} a request", lambda row, base, field=field: f"{row[field]['median']:.2f}" if field in row else DASH)
    for what, field in (("round trips", "redis_round_trips"), ("commands", "redis_commands"))
)
START, END = "<!-- results:start -->", "<!-- results:end -->"


def summarise(windows):
    """Median, lowest and highest over the rounds, for each case and proxy in the order they were asked for."""
    groups = {}
    for window in windows:
        groups.setdefault((window.case, window.proxy), []).append(window)
    rows = []
    for (case, proxy), rounds in groups.items():
        row = {"case": case, "proxy": proxy, "rounds": len(rounds)}
        for field in FIELDS:
            values = [value for window in rounds if (value := getattr(window, field)) is not None]
            if values:
                row[field] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        rows.append(row)
    return rows


def markdown(facts, settings, rows):
    """The tables, with what is needed to judge and repeat them."""
    by_case = {}
    for row in rows:
        by_case.setdefault(row["case"], {})[row["proxy"]] = row
    lines = [
        f"Measured {facts['date']} at commit `{facts['commit']}` with `{facts['command']}`: "
        f"{settings.rate:g} requests a second over {settings.connections} connections, "
        f"{settings.rounds} interleaved rounds of {settings.seconds:g} s each. Medians, with the lowest and highest "
        "round in brackets for CPU.",
        "",
        f"{facts['cpu']} ({facts['cores']} cores{', virtual' if facts['is_virtual'] else ''}), "
        f"{facts['memory_gib']:.0f} GiB, {facts['system']}, Linux {facts['kernel']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + ".",
        "",
    ]
    for case, proxies in by_case.items():
        lines += table(CASES[case], proxies, settings.rate, [proxy.name for proxy in settings.proxies])
    lines += growth(by_case)
    waited = max(rows, key=lambda row: row["waited_share"]["median"])
    if (share := waited["waited_share"]["median"]) > QUIET:
        lines += [
            f"The machine was not quiet: {waited['proxy']} ({CASES[waited['case']].title}) waited for its core for "
            f"{share:.0%} of the time that it ran, more than any other (median of rounds).",
            "",
        ]
    return "\n".join(lines)


def table(case, rows, rate, asked_for):
    """One case: a row for each proxy, with dashes for those that it can't be asked of."""
    # What the others are compared with.
    base = next((name for name in ("nginx", "envoy") if name in rows), next(iter(rows)))
    columns = COLUMNS + REDIS_COLUMNS * any("redis_commands" in row for row in rows.values())
    headings = [heading.format(base=base) for heading, _ in columns]
    lines = [f"### {case.title}", ""]
    if case.rate_share != 1.0:
        lines += [f"At {case.rate(rate):g} requests a second.", ""]
    lines += ["| proxy | " + " | ".join(headings) + " |", "|---|" + "---:|" * len(columns)]
    for name in asked_for:
        cells = [show(rows[name], rows[base]) if name in rows else DASH for _, show in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    missing = [name for name in asked_for if name in case.left_out]
    reasons = {reason: [name for name in missing if case.left_out[name] == reason] for reason in case.left_out.values()}
    notes = [f"No {' or '.join(names)}: {reason}." for reason, names in reasons.items() if names]
    return [*lines, "", *([" ".join(notes), ""] if notes else [])]


def cpu_of(row):
    return row["cpu_us_per_request"]["median"]


def spread(value):
    return f"{value['median']:.1f} ({value['low']:.1f} - {value['high']:.1f})"


def growth(by_case):
    """What more APIs cost, against one API of the same size."""
    base = by_case.get("1-api-100b")
    grown = [case for case in ("1000-apis", "10000-apis") if case in by_case]
    if not base or not grown:
        return []
    lines = [
        "### CPU and memory against one API",
        "",
        "| proxy | " + " | ".join(f"CPU, {CASES[case].apis:,} APIs | PSS MiB more" for case in grown) + " |",
        "|---|" + "---:|---:|" * len(grown),
    ]
    for name, one in base.items():
        cells = []
        for case in grown:
            row = by_case[case].get(name)
            if row is None:
                cells += ["", ""]
                continue
            cpu = row["cpu_us_per_request"]["median"] / one["cpu_us_per_request"]["median"]
            more = (row["pss_bytes"]["median"] - one["pss_bytes"]["median"]) / MEBIBYTE
            cells += [f"x {cpu:.2f}", f"{more:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def update_docs(path, tables):
    """Puts the tables between the markers of the page."""
    path = Path(path)
    text = path.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{path} has no {START} and {END}")
    path.write_text(f"{before}{START}\n{tables}\n{END}{after}")
