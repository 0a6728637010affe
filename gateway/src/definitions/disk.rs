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
            apis: definitions.apis.values().cloned().collect(),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_saved_is_the_newest_state_and_what_is_damaged_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path());
        assert!(disk.load().is_none());
        let api = |generation: i64| {
            let object = json!({ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanApi",
                "metadata": { "name": "a", "namespace": "shop", "generation": generation },
                "spec": { "name": "a", "version": "v1", "protocol": "REST" } });
            Arc::new(serde_json::from_value::<DoormanApi>(object).unwrap())
        };
        let id = ("shop".to_owned(), "a".to_owned());
        let apis = [(id.clone(), api(2))].into();
        disk.save(&Definitions { apis, held: [(id.clone(), api(1))].into(), ..Definitions::default() });
        let loaded = disk.load().unwrap();
        assert_eq!((loaded.apis[&id].metadata.generation, loaded.held.len()), (Some(2), 0));
        std::fs::write(&disk.file, "{").unwrap();
        assert!(disk.load().is_none());
    }
}
