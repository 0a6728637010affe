//! The states before the newest imports, as the store keeps them.
//!
//! In and out: a state as `data`, the documents by the names of the five kinds. Usually one document holds it as it is,
//! as in existing databases. A large one, which MongoDB would not take, is packed, and lies in as many documents as it
//! needs: its head and, beside that, its parts. What always holds: a head is stored after its parts and removed before
//! them, so whoever finds it finds all of it; no state is read but the one that is asked for.

use std::{
    error::Error,
    io::{self, Read, Write},
    sync::Arc,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use mongodb::bson::{Binary, Bson, Document, RawDocumentBuf, doc, spec::BinarySubtype};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::store::{Collection, Listing, Moment, Store, StoreError};

const SNAPSHOTS: Collection = Collection::ConfigSnapshots;
/// How many states are kept.
const KEPT: usize = 10;
/// Most bytes of a state that is stored as it is. A document of MongoDB has room for 16 MiB.
const MOST_AS_IT_IS: u64 = 4 << 20;
/// Most bytes of a packed state in one document.
const MOST_IN_ONE: usize = 8 << 20;
/// Most bytes that a packed state unpacks to.
const MOST_UNPACKED: u64 = 512 << 20;

const ID: &str = "snapshot_id";
const TIME: &str = "timestamp";
/// A state as it is.
const DATA: &str = "data";
/// The same as BSON, then gzip; or a piece of that.
const PACKED: &str = "data_gzip";
/// The state that a part belongs to; no head has it.
const PART_OF: &str = "part_of";
/// What is told of a state that is not read.
const TOLD: &[&str] = &[ID, TIME, PART_OF];

/// Keeps a state, and of those before it as many as are worth it.
pub(super) async fn keep(store: &Store, data: Document, created_by: &str) -> Result<(), StoreError> {
    let head = doc! { ID: Uuid::new_v4().to_string(), TIME: Moment::now(), "created_by": created_by };
    for document in spawn_blocking(move || documents(head, data)).await?? {
        store.insert(SNAPSHOTS, document).await?;
    }
    if let Err(error) = prune(store).await {
        // The next import tries it again.
        tracing::warn!(%error, "states before older imports are still kept");
    }
    Ok(())
}

/// The time of the newest state, and the state. `None`: there is none.
pub(super) async fn newest(store: &Store) -> Result<Option<(String, Document)>, StoreError> {
    let listing = Listing { members: Some(TOLD), ..Listing::with(PART_OF, Bson::Null) };
    let (heads, _) = store.list(SNAPSHOTS, &listing).await?;
    let newest = heads.iter().max_by(|one, other| text(one, TIME).cmp(text(other, TIME)));
    let Some(newest) = newest else { return Ok(None) };
    let Some(head) = store.find(SNAPSHOTS, &[text(newest, ID)]).await? else { return Ok(None) };
    Ok(Some((text(newest, TIME).to_owned(), data(store, &head).await?)))
}

/// Removes all but the newest states, and parts of older ones whose head is gone or never came.
async fn prune(store: &Store) -> Result<(), StoreError> {
    let (all, _) = store.list(SNAPSHOTS, &Listing { members: Some(TOLD), ..Listing::default() }).await?;
    for id in outdated(&all) {
        store.remove(SNAPSHOTS, &[id]).await?;
    }
    Ok(())
}

/// Ids of what is not worth keeping, of all heads and parts in the order of their ids.
fn outdated(all: &[Arc<Document>]) -> Vec<&str> {
    let mut all: Vec<&Document> = all.iter().map(|one| &**one).collect();
    // A head stays before its parts.
    all.sort_by(|one, other| text(other, TIME).cmp(text(one, TIME)));
    let kept: Vec<&Document> = all.iter().copied().filter(|one| !is_part(one)).take(KEPT).collect();
    let Some(oldest) = kept.get(KEPT - 1) else { return Vec::new() };
    // Newer parts are those of a state that another process is about to keep.
    let is_old = |one: &Document| text(one, TIME) <= text(oldest, TIME);
    let is_kept = |one: &Document| kept.iter().any(|head| text(head, ID) == state_of(one));
    all.into_iter().filter(|one| is_old(one) && !is_kept(one)).map(|one| text(one, ID)).collect()
}

/// A text of a document. Times are written so that they sort as texts.
fn text<'a>(document: &'a Document, member: &str) -> &'a str {
    document.get_str(member).unwrap_or_default()
}

fn is_part(document: &Document) -> bool {
    document.contains_key(PART_OF)
}

/// The id of the state that a head, or a part, is of.
fn state_of(document: &Document) -> &str {
    document.get_str(PART_OF).unwrap_or_else(|_| text(document, ID))
}

/// The id of a part; the first has number 1.
fn part_id(id: &str, number: usize) -> String {
    format!("{id}/{number}")
}

fn failed(cause: impl Error + Send + Sync + 'static) -> StoreError {
    StoreError::Documents(Arc::new(cause))
}

/// What a state is stored as, in this order: its head is the last.
fn documents(mut head: Document, data: Document) -> Result<Vec<Document>, StoreError> {
    let bytes = data.to_vec().map_err(failed)?;
    let size = bytes.len() as u64;
    if size <= MOST_AS_IT_IS {
        head.insert(DATA, data);
        return Ok(vec![head]);
    }
    if size > MOST_UNPACKED {
        return Err(failed(io::Error::other(format!("a state of {size} bytes is too large to be kept"))));
    }
    let packed = pack(&bytes).map_err(failed)?;
    let pieces = packed.chunks(MOST_IN_ONE).enumerate().rev();
    Ok(pieces.map(|(number, piece)| with_piece(head.clone(), number, piece)).collect())
}

/// A head with its piece of a packed state, or the part that it becomes with a further one.
fn with_piece(mut document: Document, number: usize, piece: &[u8]) -> Document {
    if number > 0 {
        let id = text(&document, ID).to_owned();
        document.insert(ID, part_id(&id, number));
        document.insert(PART_OF, id);
    }
    document.insert(PACKED, Binary { subtype: BinarySubtype::Generic, bytes: piece.to_vec() });
    document
}

/// The state that a head begins.
async fn data(store: &Store, head: &Document) -> Result<Document, StoreError> {
    if let Ok(data) = head.get_document(DATA) {
        return Ok(data.clone());
    }
    let mut packed = head.get_binary_generic(PACKED).map_err(failed)?.clone();
    // Gzip tells whether the last one is there.
    for number in 1.. {
        let Some(part) = store.find(SNAPSHOTS, &[&part_id(text(head, ID), number)]).await? else { break };
        packed.extend_from_slice(part.get_binary_generic(PACKED).map_err(failed)?);
    }
    spawn_blocking(move || unpack(&packed)).await?
}

fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes)?;
    packer.finish()
}

/// What is longer, or lacks its end, is no document.
fn unpack(packed: &[u8]) -> Result<Document, StoreError> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).take(MOST_UNPACKED).read_to_end(&mut bytes).map_err(failed)?;
    Document::try_from(RawDocumentBuf::from_bytes(bytes).map_err(failed)?).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::servers::{Server, external};

    /// A state of so many MiB that gzip makes hardly smaller.
    fn large(size: usize) -> Document {
        let name = || (0..1 << 20).map(|_| fastrand::alphanumeric()).collect::<String>();
        doc! { "groups": (0..size).map(|_| doc! { "group_name": name() }).collect::<Vec<_>>() }
    }

    async fn all(store: &Store) -> Vec<Arc<Document>> {
        store.all(SNAPSHOTS).await.unwrap()
    }

    #[tokio::test]
    async fn a_small_state_is_kept_in_the_form_of_existing_databases() {
        let store = Store::in_memory();
        let data = doc! { "groups": [{ "group_name": "team" }] };
        keep(&store, data.clone(), "amy").await.unwrap();
        let kept = all(&store).await;
        assert_eq!(kept[0].keys().collect::<Vec<_>>(), [ID, TIME, "created_by", DATA]);
        assert_eq!((kept.len(), text(&kept[0], "created_by")), (1, "amy"));
        assert_eq!(newest(&store).await.unwrap(), Some((text(&kept[0], TIME).to_owned(), data)));
    }

    #[tokio::test]
    async fn a_large_state_comes_back_from_its_parts_and_goes_with_them() {
        let (mongo, redis) = (Server::mongo(), Server::redis(&[]));
        let data = large(12);
        let in_mongo = Store::open(&external(redis.port, mongo.port, &[])).await.unwrap();
        for store in [Store::in_memory(), in_mongo] {
            keep(&store, data.clone(), "amy").await.unwrap();
            let kept = all(&store).await;
            let sizes: Vec<_> = kept.iter().map(|one| one.get_binary_generic(PACKED).unwrap().len()).collect();
            assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= MOST_IN_ONE), "{sizes:?}");
            assert!(!is_part(&kept[0]) && kept[1..].iter().all(|one| is_part(one)));
            assert!(newest(&store).await.unwrap().is_some_and(|(_, newest)| newest == data), "{store:?}");

            let begun = doc! { ID: "begun/1", PART_OF: "begun", TIME: text(&kept[0], TIME) };
            store.insert(SNAPSHOTS, begun).await.unwrap();
            for number in 0..8 {
                let later = doc! { ID: number.to_string(), TIME: Moment::now(), DATA: {} };
                store.insert(SNAPSHOTS, later).await.unwrap();
            }
            keep(&store, doc! {}, "amy").await.unwrap();
            assert_eq!(all(&store).await.len(), sizes.len() + 9, "what was begun is gone");
            let coming = doc! { ID: "coming/1", PART_OF: "coming", TIME: Moment::now() };
            store.insert(SNAPSHOTS, coming).await.unwrap();
            keep(&store, doc! {}, "amy").await.unwrap();
            let left = all(&store).await;
            assert_eq!((left.len(), left.iter().filter(|one| one.contains_key(DATA)).count()), (KEPT + 1, KEPT));
            assert_eq!(newest(&store).await.unwrap().map(|(_, newest)| newest), Some(doc! {}));
        }
    }

    #[tokio::test]
    async fn a_state_that_is_not_whole_is_an_error_and_no_other_state() {
        let store = Store::in_memory();
        let data = doc! { "groups": [{ "group_name": "team" }] };
        let packed = pack(&data.to_vec().unwrap()).unwrap();
        let (first, second) = packed.split_at(packed.len() / 2);
        let head = doc! { ID: "1", TIME: Moment::now() };
        store.insert(SNAPSHOTS, with_piece(head.clone(), 0, first)).await.unwrap();
        assert!(newest(&store).await.is_err());
        store.insert(SNAPSHOTS, with_piece(head, 1, second)).await.unwrap();
        assert_eq!(newest(&store).await.unwrap().map(|(_, newest)| newest), Some(data));
        store.insert(SNAPSHOTS, doc! { ID: "2", TIME: Moment::now() }).await.unwrap();
        assert!(newest(&store).await.is_err());
    }
}
