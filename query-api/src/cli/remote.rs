//! Talking to a running server from the command line.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use wattlake_config::Settings;

use super::Failure;
use crate::server::{self, Open};

/// Where a server is, and the token for it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// Server to ask [default: the data directory, or the local server that holds it]
    #[arg(long, env = "WATTLAKE_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Token for the server [default: DATA_DIR/admin-token]
    #[arg(long, env = "WATTLAKE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
}

/// A server that can be asked.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    url: String,
    token: Option<String>,
}

impl Remote {
    /// The server that the arguments or the settings name.
    pub(super) fn new(args: &RemoteArgs, settings: &Settings) -> Result<Self, Failure> {
        let url = args.url.clone().unwrap_or_else(|| format!("http://{}", settings.http.listen));
        let token = args.token.clone().or_else(|| {
            let text = std::fs::read_to_string(settings.data_dir.0.join("admin-token")).ok()?;
            Some(text.trim().to_owned())
        });
        let client = Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy().build();
        let client =
            client.map_err(|error| Failure::failed(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), token })
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.get(format!("{}{path}", self.url)))
    }

    pub(super) fn delete(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.delete(format!("{}{path}", self.url)))
    }

    pub(super) fn post(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.post(format!("{}{path}", self.url)))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and reads the answer as JSON.
    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        response
            .json()
            .await
            .map_err(|error| Failure::failed(format!("the answer is not JSON: {}", error.without_url())))
    }

    /// Sends a request; an error of the server becomes a failure in its own words.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = self.exchange(request).await?;
        if response.status().is_success() { Ok(response) } else { Err(explain(response).await) }
    }

    /// Whether there is something at a path.
    pub(super) async fn has(&self, path: &str) -> Result<bool, Failure> {
        let response = self.exchange(self.get(path)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(explain(response).await),
        }
    }

    /// As [`Self::send`]; `None` when the server is too busy and asks to try again.
    pub(super) async fn send_or_busy(&self, request: RequestBuilder) -> Result<Option<Response>, Failure> {
        let response = self.exchange(request).await?;
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => Ok(None),
            status if status.is_success() => Ok(Some(response)),
            _ => Err(explain(response).await),
        }
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.send().await.map_err(|error| {
            Failure::failed(format!("cannot reach the server at {}: {}", self.url, error.without_url()))
        })
    }
}

/// Does something with the data directory: `there` when a server is named or holds the directory, else `here`.
pub(super) async fn here_or_there<T>(
    args: &RemoteArgs,
    settings: &Settings,
    here: impl AsyncFnOnce(&Open) -> Result<T, Failure>,
    there: impl AsyncFnOnce(&Remote) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if args.url.is_some() {
        return there(&Remote::new(args, settings)?).await;
    }
    match server::open(settings).await {
        Ok(open) => {
            let done = here(&open).await;
            open.close().await?;
            done
        }
        // A server of ours has it: ask that one.
        Err(failure) if failure.is_in_use() => there(&Remote::new(args, settings)?).await,
        Err(failure) => Err(failure),
    }
}

/// The failure that an answer tells of.
async fn explain(response: Response) -> Failure {
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    let message = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|body| Some(body["error"]["message"].as_str()?.to_owned()));
    Failure::failed(format!("the server answered {status}: {}", message.unwrap_or(text)))
}
