//! Where settings come from, and the reader that turns one row of the table into one value.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use super::{
    Finding, file, live,
    table::{Check, Effect, SECTIONS, Variable},
    value::{Misread, Parse},
};

/// The variable that names the configuration file.
pub(super) const CONFIG_FILE: &str = "DOORMAN_CONFIG_FILE";

/// Names and texts, as the environment has them. An empty text counts as unset.
#[derive(Clone, Default)]
pub struct Source {
    values: BTreeMap<String, OsString>,
    broken: Vec<Finding>,
    doubtful: Vec<Finding>,
    /// What a configuration file says that is no setting of this gateway.
    foreign: BTreeMap<String, String>,
}

impl Source {
    /// The environment of the process; a `.env` file in the working folder or a parent fills what is unset there.
    pub fn from_process() -> Self {
        let mut source =
            Self::from_pairs(std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text))));
        match dotenvy::dotenv_iter() {
            Ok(entries) => source.fill(entries),
            Err(error) if error.not_found() => {}
            Err(_) => source.broken.push(broken_file("can't be read")),
        }
        source
    }

    /// These variables and no others.
    pub fn from_pairs<N: Into<String>, T: Into<OsString>>(pairs: impl IntoIterator<Item = (N, T)>) -> Self {
        let values = pairs.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        Self { values, ..Self::default() }
    }

    /// Adds the variables of a file in `.env` form that are unset so far.
    #[must_use]
    pub fn or_file(mut self, path: &Path) -> Self {
        match dotenvy::from_path_iter(path) {
            Ok(entries) => self.fill(entries),
            Err(_) => self.broken.push(broken_file("can't be read")),
        }
        self
    }

    fn fill(&mut self, entries: impl Iterator<Item = dotenvy::Result<(String, String)>>) {
        let mut last = String::new();
        for entry in entries {
            // The error's own text quotes the line, which may hold a secret.
            let Ok((name, text)) = entry else {
                let place = if last.is_empty() { "the first entry".into() } else { format!("the entry after {last}") };
                self.broken.push(broken_file(&format!("{place} is not `NAME=text`")));
                return;
            };
            last.clone_from(&name);
            if self.get(&name).is_none() {
                self.values.insert(name, text.into());
            }
        }
    }

    /// Adds the settings of the configuration file, where one is named, that are unset so far.
    pub(super) fn or_configuration(mut self) -> Self {
        let Some(path) = self.get(CONFIG_FILE).map(PathBuf::from) else { return self };
        let entries = match file::read(&path) {
            Ok(entries) => entries,
            Err(problem) => {
                let problem = format!("names {}, which {problem}", path.display());
                self.broken.push(Finding::new(CONFIG_FILE, problem, "correct the file or unset the variable"));
                return self;
            }
        };
        let mut added = BTreeMap::new();
        for (name, text) in entries {
            let names = |variable: &Variable| variable.name == name || variable.aliases.contains(&&*name);
            let row = SECTIONS.iter().flat_map(|section| section.variables).find(|variable| names(variable));
            match row {
                Some(row) if row.is_secret => self.broken.push(Finding::new(
                    &name,
                    format!("is a secret and is in {}", path.display()),
                    "give it in the environment, or in a file of its own",
                )),
                Some(row) if row.name == CONFIG_FILE => {}
                // The environment may have it under another of its names.
                Some(row) if std::iter::once(&row.name).chain(row.aliases).any(|name| self.get(name).is_some()) => {}
                Some(_) => {
                    added.insert(name, OsString::from(text));
                }
                None => {
                    if !live::KNOWN_ELSEWHERE.iter().any(|(known, _)| *known == name) {
                        let problem = format!("is in {} and is no setting", path.display());
                        self.doubtful.push(Finding::new(&name, problem, "it has no effect"));
                    }
                    self.foreign.insert(name, text);
                }
            }
        }
        self.values.extend(added);
        self
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        self.values.get(name).map(OsString::as_os_str).filter(|text| !text.is_empty())
    }
}

fn broken_file(problem: &str) -> Finding {
    Finding::new(".env", problem, "correct the file or remove it")
}

/// Reads rows and collects what was wrong with them.
pub(super) struct Reader {
    source: Source,
    pub(super) errors: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    /// What each row was read from; no secrets.
    pub(super) texts: BTreeMap<&'static str, String>,
}

impl Reader {
    pub(super) fn new(mut source: Source) -> Self {
        let errors = std::mem::take(&mut source.broken);
        let warnings = std::mem::take(&mut source.doubtful);
        Self { source, errors, warnings, texts: BTreeMap::new() }
    }

    /// What the configuration file says that is no setting of this gateway.
    pub(super) fn foreign(self) -> BTreeMap<String, String> {
        self.source.foreign
    }

    /// The variable's value. What can't be used is noted, and the default stands in.
    pub(super) fn read<T: Parse>(&mut self, variable: &Variable, check: Check<T>) -> T {
        let is_used = variable.effect == Effect::Used;
        if !variable.is_secret {
            self.texts.insert(variable.name, variable.default.to_owned());
        }
        let text = match self.text(variable) {
            Ok(Some(text)) => text,
            Ok(None) => return default(variable),
            Err(finding) => {
                self.errors.push(finding);
                return default(variable);
            }
        };
        if !is_used && !text.eq_ignore_ascii_case(variable.default) {
            let remedy = "remove it, or don't count on it";
            self.warnings.push(Finding::new(variable.name, "is set but not used by this version yet", remedy));
        }
        let checked = T::parse(&text).and_then(|value| match check(&value) {
            None => Ok(value),
            Some(why) => Err(Misread::UseDefault(format!("{text:?} {why}"))),
        });
        if !variable.is_secret && matches!(checked, Ok(_) | Err(Misread::Use(..))) {
            self.texts.insert(variable.name, text);
        }
        match checked {
            Ok(value) => value,
            Err(Misread::Refuse(why)) if is_used => {
                self.errors.push(Finding::new(variable.name, why, format!("give it as: {}", variable.kind)));
                default(variable)
            }
            Err(Misread::Refuse(why) | Misread::UseDefault(why)) => {
                let remedy = if variable.default.is_empty() {
                    "it counts as unset".to_owned()
                } else {
                    format!("the default is used: {}", variable.default)
                };
                self.warnings.push(Finding::new(variable.name, why, remedy));
                default(variable)
            }
            Err(Misread::Use(value, why)) => {
                self.warnings.push(Finding::new(variable.name, why, format!("give it as: {}", variable.kind)));
                value
            }
        }
    }

    /// The text given for a variable under any of its names, or in the file of a secret.
    fn text(&mut self, variable: &Variable) -> Result<Option<String>, Finding> {
        let mut found: Option<(String, String)> = None;
        for name in std::iter::once(&variable.name).chain(variable.aliases) {
            let mut given = self.source.get(name).map(|text| (String::from(*name), text.to_owned()));
            if variable.is_secret {
                let file_name = format!("{name}_FILE");
                if let Some(path) = self.source.get(&file_name) {
                    if given.is_some() {
                        let problem = format!("is set, and so is {file_name}");
                        return Err(Finding::new(variable.name, problem, "keep one of the two"));
                    }
                    let text = secret_file(Path::new(path)).map_err(|problem| {
                        Finding::new(variable.name, format!("{problem} ({file_name})"), "name a file with the secret")
                    })?;
                    given = Some((file_name, text.into()));
                }
            }
            let Some((given_name, text)) = given else { continue };
            let Some(text) = text.to_str() else {
                return Err(Finding::new(variable.name, "is not UTF-8", "give it as plain text"));
            };
            let text = if variable.is_secret { text } else { text.trim() };
            match &found {
                _ if text.is_empty() => {}
                None => found = Some((given_name, text.to_owned())),
                Some((first, kept)) if kept != text => {
                    let problem = format!("is also set, as {given_name}, to something else");
                    self.warnings.push(Finding::new(variable.name, problem, format!("{first} is used")));
                }
                Some(_) => {}
            }
        }
        Ok(found.map(|(_, text)| text))
    }
}

fn default<T: Parse>(variable: &Variable) -> T {
    let value = if variable.default.is_empty() { T::unset() } else { T::parse(variable.default).ok() };
    value.unwrap_or_else(|| unreachable!("the default of {} is a value of its type", variable.name))
}

/// The text of a file without the line break that editors and `echo` put at its end.
fn secret_file(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("its file {} can't be read: {error}", path.display()))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("its file {} is not UTF-8", path.display()))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() { Err(format!("its file {} is empty", path.display())) } else { Ok(text.to_owned()) }
}
