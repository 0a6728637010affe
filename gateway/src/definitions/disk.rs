//! The last good definitions on disk, for a start while the API server can't be reached. They hold no Secrets: an API that
//! names one is not served before the Secret was read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use doorman_crds::{DoormanApi, DoormanRole};
use serde::{Deserialize, Serialize};

use super::Definitions;

/// A file in a folder.
#[derive(Clone, Debug)]
pub struct Disk {
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    apis: Vec<Arc<DoormanApi>>,
    roles: Vec<Arc<DoormanRole>>,
}

impl Disk {
    /// The file in this folder.
    pub fn new(folder: &Path) -> Self {
        Self { file: folder.join("definitions.json") }
    }

    /// Replaces the file as a whole; a failure is logged and leaves the old one.
    pub fn save(&self, definitions: &Definitions) {
        let saved = Saved {
            apis: definitions.apis.iter().map(|(id, api)| definitions.held.get(id).unwrap_or(api).clone()).collect(),
            roles: definitions.roles.values().cloned().collect(),
        };
        let new = self.file.with_extension("new");
        let written = serde_json::to_vec(&saved)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&new, bytes))
            .and_then(|()| std::fs::rename(&new, &self.file));
        if let Err(error) = written {
            tracing::warn!(file = %self.file.display(), %error, "the definitions can't be saved");
        }
    }

    /// What was saved last; `None` when there is nothing usable.
    pub fn load(&self) -> Option<Definitions> {
        let bytes = std::fs::read(&self.file).ok()?;
        let saved: Saved = serde_json::from_slice(&bytes)
            .map_err(|error| tracing::error!(file = %self.file.display(), %error, "the saved definitions are damaged"))
            .ok()?;
        let id = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        Some(Definitions {
            apis: saved.apis.into_iter().map(|api| (id(&api.metadata), api)).collect(),
            roles: saved.roles.into_iter().map(|role| (id(&role.metadata), role)).collect(),
            ..Definitions::default()
        })
    }
}
