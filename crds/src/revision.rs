//! The revision a gateway pod serves and the operator expects: one number for a whole set of objects.
//!
//! A revision is the sum (mod 2^128) of one hash per object over kind, uid, generation and the versions of what it
//! references. A sum does not depend on order, and one changed object costs one subtraction and one addition, so both
//! sides keep it up to date in O(changes). Kinds are summed apart: watches of different kinds are not ordered among
//! each other, within one kind every state a pod passes through is one the operator passes through as well. Secrets, each
//! of which a pod watches by itself, may pass through others on the way, and arrive at the same.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Order-independent hash of a set of objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetHash(u128);

/// Hash of one object at one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectHash(u128);

impl ObjectHash {
    /// Hash of an object; `refs` are further parts of what makes it this state.
    pub fn of(kind: &str, uid: &str, generation: i64, refs: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in [kind, uid].iter().chain(refs) {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(generation.to_be_bytes());
        let digest = hasher.finalize();
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(bytes))
    }
}

impl ObjectHash {
    /// Hash of one state of a Secret: its content has no generation, and its version tells every change.
    pub fn of_secret(uid: &str, resource_version: &str) -> Self {
        Self::of("Secret", uid, 0, &[resource_version])
    }
}

impl SetHash {
    /// Adds an object.
    pub fn insert(&mut self, object: ObjectHash) {
        self.0 = self.0.wrapping_add(object.0);
    }

    /// Takes an object out that was inserted before.
    pub fn remove(&mut self, object: ObjectHash) {
        self.0 = self.0.wrapping_sub(object.0);
    }
}

impl FromIterator<ObjectHash> for SetHash {
    fn from_iter<T: IntoIterator<Item = ObjectHash>>(objects: T) -> Self {
        let mut set = Self::default();
        objects.into_iter().for_each(|object| set.insert(object));
        set
    }
}

impl fmt::Display for SetHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for SetHash {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for SetHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SetHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What one set of definitions amounts to, per kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revision {
    /// Over the selected `DoormanApi` objects, rejected ones included.
    pub apis: SetHash,
    /// Over the selected `DoormanRole` objects, rejected ones included.
    pub roles: SetHash,
    /// Over the Secrets that selected APIs name and the gateway may use, whatever is in them. A pod of an older version
    /// knows of none.
    #[serde(default)]
    pub secrets: SetHash,
}

/// Body of `GET /revision` on a pod's admin port, and each line of `GET /revision?watch=true`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionReport {
    /// What this pod serves now.
    pub revision: Revision,
    /// Objects of that revision this pod does not serve; at most [`MAX_REJECTED`].
    pub rejected: Vec<Rejection>,
    /// How many objects are rejected in all.
    pub rejected_total: usize,
    /// APIs whose Secrets hold something else than what is needed: served with the last ones that did, or rejected. The
    /// operator reads no Secrets and learns it here. At most [`MAX_UNUSABLE`], shared out among the namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable: Vec<Rejection>,
    /// Namespaces with more of them than there was room for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unusable_untold: BTreeSet<String>,
    /// Which stores this pod reaches; absent when everything is in its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stores: Option<Stores>,
}

/// Whether a pod's stores answered it when it last asked them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stores {
    /// The store of documents.
    pub mongodb: bool,
    /// The store of counters and revocations.
    pub redis: bool,
}

impl Stores {
    /// The products that don't answer.
    pub fn missing(self) -> impl Iterator<Item = &'static str> {
        [("MongoDB", self.mongodb), ("Redis", self.redis)]
            .into_iter()
            .filter(|(_, is_there)| !is_there)
            .map(|(name, _)| name)
    }
}

/// An object a pod does not serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rejection {
    /// `DoormanApi` or `DoormanRole`; `File` or `Document` for what could not be read as one.
    pub kind: String,
    /// Where it lives; empty for objects from a folder.
    pub namespace: String,
    /// `metadata.name`, or the file for what could not be read as an object.
    pub name: String,
    /// `Invalid`, `Conflict`, ...
    pub reason: String,
    /// Names the field and what to do.
    pub message: String,
}

/// Cap of [`RevisionReport::rejected`].
pub const MAX_REJECTED: usize = 20;
/// Cap of [`RevisionReport::unusable`].
pub const MAX_UNUSABLE: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(id: u8, generation: i64) -> ObjectHash {
        ObjectHash::of("DoormanApi", &id.to_string(), generation, &[])
    }

    proptest! {
        #[test]
        fn order_of_objects_does_not_matter(mut ids in proptest::collection::vec((any::<u8>(), 1_i64..9), 0..20)) {
            let forward: SetHash = ids.iter().map(|(id, generation)| object(*id, *generation)).collect();
            ids.reverse();
            let backward: SetHash = ids.iter().map(|(id, generation)| object(*id, *generation)).collect();
            prop_assert_eq!(forward, backward);
        }

        #[test]
        fn replacing_an_object_equals_building_anew(id in any::<u8>(), from in 1_i64..9, to in 10_i64..19) {
            let mut set: SetHash = [object(0, 1), object(id, from)].into_iter().collect();
            set.remove(object(id, from));
            set.insert(object(id, to));
            prop_assert_eq!(set, [object(id, to), object(0, 1)].into_iter().collect());
        }
    }

    #[test]
    fn parts_can_not_be_shifted_into_each_other() {
        assert_ne!(ObjectHash::of("a", "bc", 1, &[]), ObjectHash::of("ab", "c", 1, &[]));
        assert_ne!(ObjectHash::of("a", "b", 1, &["c"]), ObjectHash::of("a", "b", 1, &["c", ""]));
    }

    #[test]
    fn text_form_round_trips() {
        let set: SetHash = [object(7, 3)].into_iter().collect();
        assert_eq!(set.to_string().parse(), Ok(set));
    }
}
