//! What the gateway tells about itself.
//!
//! `logs` writes records, `redaction` takes the secrets out of them first, `audit` says what is recorded about
//! changes, `viewer` reads it all back. `metrics` counts for Prometheus, `per_api` what it is told of each API, `traffic`
//! for the people who look at the platform API: ninety days, kept across restarts.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;

pub mod audit;
pub mod logs;
pub mod metrics;
pub mod per_api;
pub mod redaction;
pub mod traffic;
pub mod viewer;

/// What the platform API tells people. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    /// The records.
    pub logs: Arc<logs::Logs>,
    /// Minutes of traffic.
    pub traffic: Arc<traffic::Traffic>,
    /// Open connections of clients.
    pub connections: Gauge,
    /// When the process started.
    pub started: Instant,
}

/// A row of a CSV file (RFC 4180). What a spreadsheet would take for a formula is marked as text.
fn csv_row<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |cell: &str| {
        let is_formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r']);
        let cell = format!("{}{cell}", if is_formula { "'" } else { "" });
        if cell.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    let cells: Vec<String> = cells.into_iter().map(quoted).collect();
    cells.join(",") + "\n"
}
