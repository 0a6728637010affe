//! Counters of limits in Redis: one script looks at all counters of a request and counts them, by the server's clock.
//!
//! A sliding window is a hash of its parts (see [`crate::store::Counter`]), a calendar counter a number. In a cluster
//! counters of different names lie on different nodes: each node decides about its own at the same time, and what one
//! of them refuses is given back on the others. So a limit is never exceeded there either; a refused request may hold
//! its place on another counter for the moment until that.

use std::{sync::Arc, sync::LazyLock, time::Duration};

use futures::future::{join_all, try_join_all};
use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, cluster_routing::MultipleNodeRoutingInfo,
    cluster_routing::ResponsePolicy, cluster_routing::RoutingInfo,
};
use smallvec::SmallVec;

use super::{Connection, Shared, within};
use crate::{
    settings::FailMode,
    store::{
        StoreError,
        counters::{Counter, Family, Parts, Reading, Span, Taken},
    },
};

/// Numbers that the script is given for each counter.
const ARGUMENTS: usize = 6;

/// Looks at all counters; counts all or none. Answers which refuses (0: none), the time, and for each counter what it held
/// and in how many milliseconds enough of that has left.
///
/// Beside its parts, the hash of a window has their sum in `t` and the number of the oldest in `o`: so a counter costs
/// one command to look at and one to count, whatever it holds. All parts are read only when some have left the window,
/// which is once in a part's length, and where it must be told when enough is free for what is refused.
pub(super) const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local whole = function(number) return string.format('%.0f', number) end

local parts_of = function(key)
  local fields, counted = redis.call('HGETALL', key), {}
  for f = 1, #fields, 2 do
    local number = tonumber(fields[f])
    if number then counted[#counted + 1] = {number, tonumber(fields[f + 1]), fields[f]} end
  end
  return counted
end

local without_those_before = function(key, first)
  local total, oldest, gone = 0, nil, {}
  for _, one in ipairs(parts_of(key)) do
    if one[1] < first then
      gone[#gone + 1] = one[3]
    else
      total = total + one[2]
      oldest = math.min(oldest or one[1], one[1])
    end
  end
  if not oldest then
    redis.call('DEL', key)
  elseif #gone > 0 then
    redis.call('HDEL', key, unpack(gone))
    redis.call('HSET', key, 't', whole(total), 'o', whole(oldest))
  end
  return total, oldest
end

local calendar, totals = {}, {}
for i, key in ipairs(KEYS) do
  if ARGV[i * 6 - 5] == '0' then calendar[#calendar + 1] = key end
end
if #calendar > 0 then totals = redis.call('MGET', unpack(calendar)) end

local answer, held, next_total = {0, now}, {}, 1
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 6
  local part, parts = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local limit, need = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local used, frees = 0, 0
  if part == 0 then
    used = tonumber(totals[next_total] or '0')
    next_total = next_total + 1
  else
    local current = math.floor(now / part)
    local seen = redis.call('HMGET', key, 't', 'o', whole(current))
    local total, oldest, here = tonumber(seen[1] or '0'), tonumber(seen[2] or ''), tonumber(seen[3] or '')
    if oldest and oldest < current - parts then total, oldest = without_those_before(key, current - parts) end
    used = total
    held[key] = {total = total, oldest = oldest or current, here = here}
    frees = (parts + 1) * part
    if oldest then frees = (oldest + parts + 1) * part - now end
    if used + need > limit then
      local counted, left = parts_of(key), used
      table.sort(counted, function(a, b) return a[1] < b[1] end)
      for _, one in ipairs(counted) do
        left = left - one[2]
        frees = (one[1] + parts + 1) * part - now
        if left + need <= limit then break end
      end
    end
  end
  if used + need > limit and answer[1] == 0 then answer[1] = i end
  answer[#answer + 1] = used
  answer[#answer + 1] = frees
end

if answer[1] == 0 then
  for i, key in ipairs(KEYS) do
    local at = (i - 1) * 6
    local part, add, life = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 5]), ARGV[at + 6]
    -- The end is set with the first that is counted in a part or stretch: it outlives the last of it.
    local is_first = false
    if add > 0 and part == 0 then
      is_first = redis.call('INCRBY', key, add) == add
    elseif add > 0 then
      local own, current = held[key], math.floor(now / part)
      is_first = not own.here
      own.total, own.oldest, own.here = own.total + add, math.min(own.oldest, current), (own.here or 0) + add
      redis.call('HSET', key, 't', whole(own.total), 'o', whole(own.oldest), whole(current), whole(own.here))
    end
    if is_first then redis.call('PEXPIRE', key, life) end
  end
end
return answer
";

/// Takes back what was counted at a time: the key's part then, or the number.
const GIVE_BACK: &str = r"
local now = tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  local part, add = tonumber(ARGV[i * 2]), tonumber(ARGV[i * 2 + 1])
  if add > 0 then
    if part == 0 then
      if redis.call('EXISTS', key) == 1 then redis.call('DECRBY', key, add) end
    else
      local field = string.format('%.0f', math.floor(now / part))
      if redis.call('HEXISTS', key, field) == 1 then
        redis.call('HINCRBY', key, field, -add)
        redis.call('HINCRBY', key, 't', -add)
      end
    end
  end
end
return 0
";

/// Counts on calendar counters whatever their limits are: how much, then how long each is kept.
const BOOK: &str = r"
for i, key in ipairs(KEYS) do
  if redis.call('INCRBY', key, ARGV[1]) == tonumber(ARGV[1]) then redis.call('EXPIRE', key, ARGV[i + 1]) end
end
return 0
";

/// Removes the counters of these names that this node holds.
const RESET_COUNTERS: &str = r"
for _, pattern in ipairs(ARGV) do
  local cursor = '0'
  repeat
    local found = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', 1000)
    cursor = found[1]
    for _, key in ipairs(found[2]) do redis.call('UNLINK', key) end
  until cursor == '0'
end
return 0
";

/// A script and the name that servers know it by.
struct Known {
    code: &'static str,
    script: LazyLock<Script>,
}

static KNOWN_TAKE: Known = Known { code: TAKE, script: LazyLock::new(|| Script::new(TAKE)) };
static KNOWN_GIVE_BACK: Known = Known { code: GIVE_BACK, script: LazyLock::new(|| Script::new(GIVE_BACK)) };
static KNOWN_BOOK: Known = Known { code: BOOK, script: LazyLock::new(|| Script::new(BOOK)) };

/// Length of the parts, 0 for a calendar counter.
fn part_millis(span: Span) -> u64 {
    match span {
        Span::Sliding(window) => Parts::of(window).millis,
        Span::Until { .. } => 0,
    }
}

fn arguments(counter: &Counter, now: u64) -> [u64; ARGUMENTS] {
    let (parts, life) = match counter.span {
        Span::Sliding(window) => {
            let Parts { millis, number } = Parts::of(window);
            (number, (number + 2).saturating_mul(millis))
        }
        Span::Until { kept, .. } => (0, kept.saturating_sub(now).max(1).saturating_mul(1_000)),
    };
    [part_millis(counter.span), parts, counter.limit, counter.need, counter.add, life]
}

/// What the script answers, for counters that were given to it in this order.
fn read(answer: &[u64], counters: &[&Counter], now: u64) -> Option<(Taken, u64)> {
    let [refused, time, readings @ ..] = answer else { return None };
    let mut taken = Taken { refused: usize::try_from(*refused).ok()?.checked_sub(1), ..Taken::default() };
    for (counter, reading) in counters.iter().zip(readings.as_chunks::<2>().0) {
        let [used, frees] = *reading;
        let frees_in = match counter.span {
            Span::Sliding(_) => Duration::from_millis(frees),
            Span::Until { end, .. } => Duration::from_secs(end.saturating_sub(now)),
        };
        taken.readings.push(Reading { used, frees_in });
    }
    (taken.readings.len() == counters.len()).then_some((taken, *time))
}

impl Shared {
    /// Runs a script by its hash, and sends it where it is not known yet.
    async fn script<T: FromRedisValue>(&self, script: &Known, rest: impl Fn(&mut Cmd)) -> Result<T, StoreError> {
        let command = |name: &str, script: &str| {
            let mut command = redis::cmd(name);
            command.arg(script);
            rest(&mut command);
            command
        };
        let known = command("EVALSHA", script.script.get_hash());
        match self.run(&known).await {
            Err(StoreError::Shared(cause)) if is_unknown_script(&cause) => {
                self.run(&command("EVAL", script.code)).await
            }
            answer => answer,
        }
    }

    async fn take_on_one(&self, counters: &[&Counter], now: u64) -> Result<(Taken, u64), StoreError> {
        let keys: SmallVec<[&str; 8]> = counters.iter().map(|counter| &*counter.key).collect();
        let numbers: SmallVec<[u64; 48]> = counters.iter().flat_map(|counter| arguments(counter, now)).collect();
        let answer: Vec<u64> = self
            .script(&KNOWN_TAKE, |command| {
                command.arg(keys.len()).arg(&keys[..]).arg(&numbers[..]);
            })
            .await?;
        let odd = || StoreError::shared(std::io::Error::other("Redis answers a script with something else"));
        read(&answer, counters, now).ok_or_else(odd)
    }

    async fn give_back(&self, counters: &[&Counter], time: u64) -> Result<(), StoreError> {
        let keys: SmallVec<[&str; 8]> = counters.iter().map(|counter| &*counter.key).collect();
        let numbers: SmallVec<[u64; 16]> =
            counters.iter().flat_map(|counter| [part_millis(counter.span), counter.add]).collect();
        let answer = self.script::<u64>(&KNOWN_GIVE_BACK, |command| {
            command.arg(keys.len()).arg(&keys[..]).arg(time).arg(&numbers[..]);
        });
        answer.await.map(|_| ())
    }

    /// Counts all, or none when one refuses. While Redis is away: in this process, or not at all, as
    /// `DOORMAN_LIMITS_FAIL_MODE` says.
    pub(in crate::store) async fn take(&self, counters: &[Counter], now: u64) -> Result<Taken, StoreError> {
        let taken = match &self.connection {
            Connection::Single(_) => {
                let all: SmallVec<[&Counter; 8]> = counters.iter().collect();
                self.take_on_one(&all, now).await.map(|(taken, _)| taken)
            }
            Connection::Cluster(..) => self.take_on_many(counters, now).await,
        };
        taken.or_else(|error| self.take_without(error, counters, now))
    }

    async fn take_on_many(&self, counters: &[Counter], now: u64) -> Result<Taken, StoreError> {
        let mut groups: SmallVec<[SmallVec<[usize; 8]>; 4]> = SmallVec::new();
        for (index, counter) in counters.iter().enumerate() {
            let is_here = |group: &&mut SmallVec<[usize; 8]>| counters[group[0]].tag() == counter.tag();
            match groups.iter_mut().find(is_here) {
                Some(group) => group.push(index),
                None => groups.push(SmallVec::from_slice(&[index])),
            }
        }
        let of = |group: &[usize]| group.iter().map(|index| &counters[*index]).collect::<SmallVec<[&Counter; 8]>>();
        let answers = join_all(groups.iter().map(async |group| self.take_on_one(&of(group), now).await)).await;
        let mut all = Taken { refused: None, readings: SmallVec::from_elem(Reading::default(), counters.len()) };
        let mut failure = None;
        for (group, answer) in groups.iter().zip(&answers) {
            match answer {
                Ok((taken, _)) => {
                    for (index, reading) in group.iter().zip(&taken.readings) {
                        all.readings[*index] = *reading;
                    }
                    let refused = taken.refused.and_then(|place| group.get(place).copied());
                    all.refused = all.refused.into_iter().chain(refused).min();
                }
                Err(error) => failure = Some(error.clone()),
            }
        }
        if all.refused.is_some() || failure.is_some() {
            let admitted = groups.iter().zip(&answers).filter_map(|(group, answer)| match answer {
                Ok((Taken { refused: None, .. }, time)) => Some((of(group), *time)),
                _ => None,
            });
            let given = admitted.map(async |(group, time)| self.give_back(&group, time).await);
            if let Err(error) = try_join_all(given).await {
                tracing::warn!(%error, "a refused request stays counted on another limit");
            }
        }
        failure.map_or(Ok(all), Err)
    }

    /// What measuring comes to while Redis is away: by the counters of this process, or an error, as the settings say.
    pub(in crate::store) fn take_without(
        &self,
        error: StoreError,
        counters: &[Counter],
        now: u64,
    ) -> Result<Taken, StoreError> {
        self.fallbacks.inc();
        match self.fail_mode {
            FailMode::Open => {
                tracing::debug!(%error, "limits are counted in this process while Redis is away");
                Ok(self.meanwhile.take(counters, now))
            }
            FailMode::Closed => Err(error),
        }
    }

    /// Counts this on calendar counters of one user, whatever their limits are; in this process while Redis is away.
    pub(in crate::store) async fn book(&self, booked: &[(Arc<str>, u64)], add: u64, now: u64) {
        // Names with a user in braces lie on one node.
        let counted = self.script::<u64>(&KNOWN_BOOK, |command| {
            command.arg(booked.len());
            for (key, _) in booked {
                command.arg(&**key);
            }
            command.arg(add);
            for (_, kept) in booked {
                command.arg(kept.saturating_sub(now).max(1));
            }
        });
        if let Err(error) = counted.await {
            tracing::debug!(%error, "bytes are counted in this process while Redis is away");
            self.meanwhile.book(booked, add, now);
        }
    }

    pub(in crate::store) async fn totals(&self, keys: &[Arc<str>]) -> Result<Vec<u64>, StoreError> {
        let totals = keys.iter().map(async |key| self.run::<Option<u64>>(redis::cmd("GET").arg(&**key)).await);
        Ok(try_join_all(totals).await?.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Starts the counters again whose families do, on every node.
    pub(in crate::store) async fn reset_counters(&self) -> Result<(), StoreError> {
        self.meanwhile.reset_counters();
        let mut command = redis::cmd("EVAL");
        command.arg(RESET_COUNTERS).arg(0);
        for family in Family::ALL.into_iter().filter(|family| family.starts_again()) {
            command.arg(family.named("*"));
        }
        match &self.connection {
            Connection::Single(_) => self.run(&command).await,
            Connection::Cluster(connection, _) => {
                let masters = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::AllSucceeded));
                let mut connection = connection.clone();
                within(connection.route_command(command, RoutingInfo::MultiNode(masters))).await.map(|_| ())
            }
        }
    }
}

fn is_unknown_script(cause: &crate::store::Cause) -> bool {
    let error = cause.downcast_ref::<RedisError>();
    error.is_some_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}
