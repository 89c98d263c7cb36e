//! nginx with static files, put there over HTTP and read ever after.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, anyhow};

use super::{Container, Holdings, Service, compare, ready};
use crate::lab::NGINX;
use crate::probe::Content;
use crate::probe::dialect::http::{Http, request};
use crate::probe::dialect::{Answer, Dialect};
use crate::workload::dataset::Dataset;

/// Two workers; files come by `PUT`; a connection is never closed for having
/// asked too much.
const CONFIGURATION: &str = "\
user root root; worker_processes 2; daemon off; pid /run/nginx.pid; error_log stderr; \
events { worker_connections 4096; } \
http { access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; sendfile on; \
client_max_body_size 1m; client_body_temp_path /data/body; open_file_cache max=10000; \
server { listen 80 backlog=4096; root /data/files; \
location / { dav_methods PUT; create_full_put_path on; dav_access user:rw; } } }";

/// nginx with this many bytes of files.
#[derive(Clone, Copy, Debug)]
pub struct Files(pub Dataset);

impl Service for Files {
    fn describe(&self) -> String {
        format!("nginx with {} of static files", blip_transport::units::ByteSize(self.0.bytes))
    }

    fn memory(&self) -> u64 {
        self.0.bytes
    }

    fn container(&self) -> Container {
        let start = format!(
            "mkdir -p /data/files /var/lib/nginx /var/log/nginx; printf %s '{CONFIGURATION}' \
             >/data/nginx.conf; exec nginx -c /data/nginx.conf"
        );
        Container::made_of(&NGINX, &["sh", "-c", &start], 80)
    }

    fn dialect(&self) -> Arc<dyn Dialect> {
        Arc::new(Http)
    }

    fn only_reads(&self) -> bool {
        true
    }

    fn settle(&self, addr: SocketAddr, _: &[String]) -> Result<Arc<dyn Holdings>> {
        let mut talk = ready(&Http, addr, &Http.read("nothing"))?;
        let mut content = Content::default();
        let files = self.0.entries().map(|entry| {
            let name = entry.key.replace(':', "-");
            content.add(name.clone(), &entry.value);
            request("PUT", &name, &entry.value)
        });
        let put = talk.ask_all(files, |_, answer| match answer {
            Answer::Content(_) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        put.map_err(|why| anyhow!("putting files to nginx: {why}"))?;
        Ok(Arc::new(Held(Arc::new(content))))
    }
}

struct Held(Arc<Content>);

impl Holdings for Held {
    fn content(&self) -> Arc<Content> {
        Arc::clone(&self.0)
    }

    fn changed(&self, addr: SocketAddr) -> Result<Vec<String>> {
        compare(&Http, addr, &self.0)
    }
}
