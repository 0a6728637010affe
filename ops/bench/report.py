"""The numbers of all rounds as JSON and as Markdown tables."""

import statistics
from pathlib import Path

from measure import CASES

MEBIBYTE = 1 << 20
# Waiting for the core, against running: others were there, and left cold caches behind. Above it the reader should know.
QUIET = 0.05
START, END = "<!-- results:start -->", "<!-- results:end -->"


def summarise(windows):
    """Median, lowest and highest over the rounds, for each case and proxy in the order they were asked for."""
    groups = {}
    for window in windows:
        groups.setdefault((window.case, window.proxy), []).append(window)
    rows = []
    for (case, proxy), rounds in groups.items():
        row = {"case": case, "proxy": proxy, "rounds": len(rounds)}
        for field in ("cpu_us_per_request", "p50_us", "p99_us", "rss_bytes", "pss_bytes", "ready_ms", "waited_share"):
            values = [getattr(window, field) for window in rounds]
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
        lines += [
            f"### {CASES[case].title}",
            "",
            "| proxy | CPU us a request | x nginx | p50 us | p99 us | RSS MiB | PSS MiB | ready ms |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        nginx = proxies.get("nginx")
        for name, row in proxies.items():
            cpu = row["cpu_us_per_request"]
            ratio = f"{cpu['median'] / nginx['cpu_us_per_request']['median']:.2f}" if nginx else ""
            lines.append(
                f"| {name} | {cpu['median']:.1f} ({cpu['low']:.1f} - {cpu['high']:.1f}) | {ratio} "
                f"| {row['p50_us']['median']:.0f} | {row['p99_us']['median']:.0f} "
                f"| {row['rss_bytes']['median'] / MEBIBYTE:.1f} | {row['pss_bytes']['median'] / MEBIBYTE:.1f} "
                f"| {row['ready_ms']['median']:.0f} |"
            )
        lines.append("")
    lines += growth(by_case)
    waited = max(rows, key=lambda row: row["waited_share"]["median"])
    if (share := waited["waited_share"]["median"]) > QUIET:
        lines += [
            f"The machine was not quiet: {waited['proxy']} ({CASES[waited['case']].title}) waited for its core for "
            f"{share:.0%} of the time that it ran, more than any other (median of rounds).",
            "",
        ]
    return "\n".join(lines)


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
