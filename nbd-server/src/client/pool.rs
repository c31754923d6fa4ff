//! Several connections to one export, where a flush on one of them is good for all.

use std::sync::{Arc, Mutex, TryLockError};
use std::time::Instant;

use racker_formats::error::Result;

use super::answer::Wanted;
use super::dial::Dial;
use super::fault::ClientFault;
use super::handshake::{Terms, Wish, shake_hands};
use super::limits::{CONNECTIONS_MAX, Patience};
use super::link::{Link, Request};
use crate::connection::lock;
use crate::wire::ExportFlags;

type Faulty<T> = std::result::Result<T, ClientFault>;

/// The connections of one disk.
#[derive(Debug)]
pub(super) struct Pool {
    server: Box<dyn Dial>,
    wish: Wish,
    patience: Patience,
    terms: Terms,
    links: Mutex<Vec<Arc<Link>>>,
    /// Whether more connections may be made; held while one is.
    may_grow: Mutex<bool>,
}

impl Pool {
    /// Makes the first connection.
    pub(super) fn new(server: Box<dyn Dial>, wish: Wish, patience: Patience) -> Result<Self> {
        let (terms, link) = connect(server.as_ref(), &wish, patience)?;
        let may_grow = terms.flags.contains(ExportFlags::CAN_MULTI_CONN);
        Ok(Self {
            server,
            wish,
            patience,
            terms,
            links: Mutex::new(vec![Arc::new(link)]),
            may_grow: Mutex::new(may_grow),
        })
    }

    /// What was agreed on.
    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Has a request answered on the connection with the least to do.
    ///
    /// Once one of them has failed, all have: what the server had of it and not on stable storage may be lost, and no
    /// later flush may say otherwise.
    pub(super) fn ask(&self, request: &Request<'_>, wanted: Wanted<'_>) -> Faulty<Wanted<'static>> {
        let link = self.link()?;
        let answer = link.ask(request, wanted);
        if answer.is_err() && link.end().is_some() {
            self.stop_growing();
        }
        answer
    }

    fn link(&self) -> Faulty<Arc<Link>> {
        let least = {
            let links = lock(&self.links);
            if let Some(end) = links.iter().find_map(|link| link.end()) {
                return Err(end);
            }
            let least = links.iter().min_by_key(|link| link.load()).cloned().ok_or(ClientFault::Ended)?;
            if least.load() == 0 || links.len() >= CONNECTIONS_MAX {
                return Ok(least);
            }
            least
        };
        // One thread makes a connection while the others go on with those that there are.
        let mut may_grow = match self.may_grow.try_lock() {
            Ok(may_grow) if *may_grow => may_grow,
            Ok(_) | Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return Ok(least),
        };
        match connect(self.server.as_ref(), &self.wish, self.patience) {
            Ok((terms, link)) if terms == self.terms => {
                let link = Arc::new(link);
                let mut links = lock(&self.links);
                links.push(Arc::clone(&link));
                *may_grow = links.len() < CONNECTIONS_MAX;
                Ok(link)
            }
            // A server that lets no more in, or has become another one, is left alone.
            Ok(_) | Err(_) => {
                *may_grow = false;
                Ok(least)
            }
        }
    }

    fn stop_growing(&self) {
        *lock(&self.may_grow) = false;
    }
}

fn connect(server: &dyn Dial, wish: &Wish, patience: Patience) -> Result<(Terms, Link)> {
    let now = Instant::now();
    let until = now.checked_add(patience.handshake).unwrap_or(now);
    let stream = server.dial(until)?;
    let (terms, stream) = match shake_hands(Arc::clone(&stream), wish, until) {
        Ok(done) => done,
        Err(fault) => {
            stream.end();
            return Err(fault.into());
        }
    };
    Ok((terms, Link::new(stream, terms, patience)?))
}
