//! `docs/settings.md`, written from the table and the guards.

use std::fmt::Write;

use super::{
    guards::{GUARDS, Severity},
    table::{Effect, Origin, SECTIONS, Variable},
};

const INTRODUCTION: &str = "\
<!-- Generated from gateway/src/settings. Change the table there, then run:
     UPDATE_DOCS=1 cargo test -p doorman-gateway the_docs_page -->

# Settings of the gateway

The gateway reads its settings at start, from environment variables and the file that `DOORMAN_CONFIG_FILE` names. All reasons not to
start are reported together.

- A `.env` file in the working folder or a parent fills variables that are unset. Empty counts as unset.
  In that file `$NAME` stands for another variable, except between single quotes.
- True is `1`, `true`, `yes` or `on`, false is `0`, `false`, `no` or `off`, in any case. Anything else is refused.
- A number that can't be read or is out of range is replaced by the default, with a warning; so is an unknown log format or level.
  Other texts of the wrong type are refused, so that a slip never opens what should be closed.
- A secret can also be given as a file: `JWT_SECRET_KEY_FILE=/run/secrets/jwt` in place of `JWT_SECRET_KEY`. One line break at its end
  is dropped. Giving both is refused.
- Seconds may have decimals. Lists are separated by commas, or written as a JSON list of texts.
- \"Not used by this version yet\": the variable is known and read, and a start warns when it is set, but nothing acts on it.
- \"Live\" marks what changes while the gateway runs: SIGHUP and `POST /platform/config/reload` read the configuration file again.
  Everything else takes a restart. The environment of a running process, `.env` included, doesn't change and always wins.
- The configuration file holds no secrets: one in it is refused. `log: {level: DEBUG}` and `LOG_LEVEL: DEBUG` are the same.
- The column \"From\" tells whether the guide of Doorman names a variable, only Doorman itself does, or it is new here.

Definitions come from a folder of manifests (`--manifests DIR` on the command line), else from the cluster, where `DOORMAN_GATEWAY_NAME` and
`DOORMAN_GATEWAY_NAMESPACE` name a DoormanGateway, else over the platform API alone.
";

/// The text of `docs/settings.md`.
pub fn render_markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    for section in SECTIONS {
        _ = write!(
            page,
            "\n## {}\n\n| Variable | Type | Default | From | Meaning |\n|---|---|---|---|---|\n",
            section.title
        );
        section.variables.iter().for_each(|variable| row(&mut page, variable));
    }
    for (severity, title) in [(Severity::Refuse, "What start-up refuses"), (Severity::Warn, "What start-up warns of")] {
        _ = write!(page, "\n## {title}\n\n| Variable | Reason | What to do |\n|---|---|---|\n");
        for guard in GUARDS.iter().filter(|guard| guard.severity == severity) {
            _ = writeln!(page, "| `{}` | {} | {} |", guard.variable, cell(guard.problem), cell(guard.remedy));
        }
    }
    page.push_str(
        "\nWherever `SSL_CERTFILE` and `SSL_KEYFILE`, or files for TLS to a store, are set, a file that can't be read and a key that isn't the certificate's are refused too.\n",
    );
    page
}

fn row(page: &mut String, variable: &Variable) {
    let aliases = variable.aliases.iter().fold(String::new(), |all, alias| all + ", also `" + alias + "`");
    let kind = if variable.is_secret { format!("{}, or file", variable.kind) } else { variable.kind.to_owned() };
    let default = if variable.default.is_empty() { "unset".into() } else { format!("`{}`", variable.default) };
    let from = match variable.origin {
        Origin::Guide => "guide",
        Origin::Doorman => "Doorman",
        Origin::New => "new",
    };
    let live = if variable.is_live { " Live." } else { "" };
    let not_yet = if variable.effect == Effect::NotYet { " *Not used by this version yet.*" } else { "" };
    _ = writeln!(
        page,
        "| `{}`{aliases} | {} | {} | {from} | {}{live}{not_yet} |",
        variable.name,
        cell(&kind),
        cell(&default),
        cell(variable.meaning),
    );
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
