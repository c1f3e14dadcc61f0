"""Sends what waits in the queue of webhooks, as long as the forge runs; what is not sent stays.

A delivery that fails for a reason that may pass (no connection, no answer in time, 408, 429, 5xx) is
tried again, later each time, with the same ``Idempotency-Key``. A hook that keeps failing is switched
off, first for minutes, then for good. https://docs.gitlab.com/user/project/integrations/webhooks/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import delete, select

from notebooks_service.forge import web_hook_payloads, web_hooks
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.models import Project
from notebooks_service.forge.outbound import (
    Allowed,
    NotAllowed,
    Target,
    read_allowed,
    resolve,
    without_password,
)
from notebooks_service.forge.web_hook_models import DeliveryLog, WaitingDelivery, WebHook

log = logging.getLogger(__name__)

TRIES = 5
"""Requests for one delivery before it is given up."""
GROWTH = 6
"""Each wait is so many times longer than the one before: 10 s, 1 min, 6 min, 36 min."""
AT_ONCE = 4
MOST_BODY = 8 * 1024
MOST_HEADERS = 50
MOST_HEADER = 1024
KEPT = timedelta(days=7)
"""How long a hook's log goes back, as GitLab's."""
MOST_LOGGED = 200
"""Entries of one hook's log; older ones go."""

NAMES = {
    "push_hooks": "Push Hook",
    "tag_push_hooks": "Tag Push Hook",
    "job_hooks": "Job Hook",
    "pipeline_hooks": "Pipeline Hook",
}
REDACTED = "[REDACTED]"
INTERNAL_ERROR = "internal error"


@dataclass
class Outcome:
    """How one request ended. ``status`` is 0 if there was no answer; then ``error`` says why."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    error: str | None = None
    seconds: float = 0.0
    final: bool = False

    @property
    def good(self) -> bool:
        """As GitLab counts: a redirect is an answer, and is not followed."""
        return 200 <= self.status < 400

    @property
    def may_pass(self) -> bool:
        return not self.final and (self.status in (0, 408, 429) or self.status >= 500)


class Sender:
    """Makes the requests. One for the whole forge; holds no connection between deliveries."""

    def __init__(self, config: ForgeConfig) -> None:
        self._config = config
        self._allowed: tuple[Allowed, ...] = read_allowed(config.webhook_allowed)
        self._verified = ssl.create_default_context()
        self._unverified = ssl.create_default_context()
        self._unverified.check_hostname = False
        self._unverified.verify_mode = ssl.CERT_NONE

    def check(self, url: str) -> Target:
        """Raises ``NotAllowed``. Asks DNS: call it in a thread."""
        return resolve(url, self._allowed)

    def headers(self, hook: WebHook, trigger: str, key: str, event_uuid: str) -> dict[str, str]:
        """https://docs.gitlab.com/user/project/integrations/webhooks/#delivery-headers"""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "GitLab/notebooks-forge",
            "Idempotency-Key": key,
            "X-Gitlab-Event": NAMES[trigger],
            "X-Gitlab-Webhook-UUID": str(uuid.uuid4()),
            "X-Gitlab-Instance": self._config.url,
            "X-Gitlab-Event-UUID": event_uuid,
        }
        if hook.token:
            headers["X-Gitlab-Token"] = hook.token
        return headers

    async def send(self, hook: WebHook, headers: dict[str, str], body: bytes) -> Outcome:
        """One request, whole, within the time-out; raises nothing."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._config.webhook_timeout):
                target = await asyncio.to_thread(self.check, hook.url)
                outcome = await self._request(hook, target, headers, body)
        except NotAllowed as error:
            outcome = Outcome(error=f"{error}.", final=True)
        except TimeoutError:
            outcome = Outcome(error="No answer in time.")
        except (httpx.HTTPError, ssl.SSLError, OSError, ValueError) as error:
            outcome = Outcome(error=f"No answer: {type(error).__name__}.")
        outcome.seconds = time.monotonic() - began
        return outcome

    async def _request(
        self, hook: WebHook, target: Target, headers: dict[str, str], body: bytes
    ) -> Outcome:
        verify = self._verified if hook.enable_ssl_verification else self._unverified
        auth = httpx.BasicAuth(target.username, target.password) if target.username else None
        async with httpx.AsyncClient(
            verify=verify,
            # A proxy would resolve the name again and connect wherever it then leads.
            trust_env=False,
            follow_redirects=False,
            timeout=self._config.webhook_timeout,
        ) as client:
            request = client.build_request(
                "POST",
                target.connect_url,
                content=body,
                headers={**headers, "Host": target.host_header, "Accept-Encoding": "identity"},
                # The certificate has to be the name's, although the connection goes to its address.
                extensions={"sni_hostname": target.host},
            )
            response = await client.send(request, stream=True, auth=auth)
            try:
                read = b""
                # Never decompressed: a small answer could be a large text.
                async for part in response.aiter_raw(MOST_BODY):
                    read += part
                    if len(read) >= MOST_BODY:
                        break
            finally:
                await response.aclose()
        hidden = [secret for secret in (hook.token, target.password) if secret]
        shown = {
            "-".join(word.capitalize() for word in name.split("-")): _clean(
                value[:MOST_HEADER], hidden
            )
            for name, value in list(response.headers.items())[:MOST_HEADERS]
        }
        return Outcome(
            response.status_code, shown, _clean(read[:MOST_BODY].decode("utf-8", "replace"), hidden)
        )


def _clean(text: str, secrets: list[str]) -> str:
    """What a receiver sends back may hold the secret that it was sent."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text.replace("\0", "\ufffd")


def note(hook: WebHook, outcome: Outcome) -> None:
    """Counts a failure, or forgets them all after a success: GitLab's ``auto_disabling.rb``."""
    if outcome.good:
        hook.recent_failures = 0
        hook.disabled_until = None
        return
    if web_hooks.alert_status(hook) != "executable":
        return
    before = hook.recent_failures
    hook.recent_failures = min(before + 1, web_hooks.LAST + 1)
    if hook.recent_failures > web_hooks.GRACE:
        wait = timedelta(minutes=1) * 2 ** min(max(before - web_hooks.GRACE, 0), 20)
        hook.disabled_until = now() + min(wait, timedelta(days=1))


def log_entry(
    hook: WebHook,
    trigger: str,
    headers: dict[str, str],
    payload: dict[str, Any],
    outcome: Outcome,
) -> DeliveryLog:
    shown = dict(headers)
    if "X-Gitlab-Token" in shown:
        shown["X-Gitlab-Token"] = REDACTED
    return DeliveryLog(
        hook_id=hook.id,
        trigger=trigger,
        url=without_password(hook.url),
        request_headers=shown,
        request_data=payload,
        response_status=str(outcome.status or INTERNAL_ERROR),
        response_headers=outcome.headers,
        response_body=outcome.body,
        error=outcome.error,
        milliseconds=int(outcome.seconds * 1000),
    )


class Deliveries:
    """Takes deliveries from the queue, several at a time but one at a time for each hook."""

    def __init__(self, config: ForgeConfig, database: Database) -> None:
        self._config = config
        self._database = database
        self.sender = Sender(config)
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends at once; a request that is cut off is made again at the next start."""
        tasks = [task for task in (self._task, *self._busy.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def now(
        self,
        hook: WebHook,
        trigger: str,
        payload: dict[str, Any],
        key: str = "",
        event_uuid: str = "",
    ) -> tuple[dict[str, str], Outcome]:
        """One request, past the queue: the headers that were sent, and how it ended."""
        headers = self.sender.headers(
            hook, trigger, key or str(uuid.uuid4()), event_uuid or str(uuid.uuid4())
        )
        body = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
        return headers, await self.sender.send(hook, headers, body)

    async def _run(self) -> None:
        while True:
            known = web_hooks.QUEUE.value
            self._ended.clear()
            try:
                for delivery_id, hook_id in await asyncio.to_thread(self._due):
                    if hook_id not in self._busy and len(self._busy) < AT_ONCE:
                        self._busy[hook_id] = asyncio.create_task(
                            self._deliver(delivery_id, hook_id)
                        )
            except Exception:
                log.exception("a look at the queue of webhooks failed")
            news = asyncio.create_task(web_hooks.QUEUE.wait(known, 1.0))
            ended = asyncio.create_task(self._ended.wait())
            try:
                await asyncio.wait({news, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
                ended.cancel()

    def _due(self) -> list[tuple[int, int]]:
        with self._database.read() as session:
            rows = session.execute(
                select(WaitingDelivery.id, WaitingDelivery.hook_id)
                .where(WaitingDelivery.due_at <= now())
                .order_by(WaitingDelivery.id)
            ).all()
        return [(row[0], row[1]) for row in rows]

    async def _deliver(self, delivery_id: int, hook_id: int) -> None:
        try:
            prepared = await asyncio.to_thread(self._prepare, delivery_id)
            if prepared is not None:
                hook, delivery, payload = prepared
                headers, outcome = await self.now(
                    hook, delivery.trigger, payload, delivery.idempotency_key, delivery.event_uuid
                )
                await asyncio.to_thread(self._done, delivery_id, hook, headers, payload, outcome)
        except Exception:
            log.exception("a delivery of hook %d failed", hook_id)
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self._postpone, delivery_id)
        finally:
            self._busy.pop(hook_id, None)
            self._ended.set()

    def _prepare(self, delivery_id: int) -> tuple[WebHook, WaitingDelivery, dict[str, Any]] | None:
        """What to send; None if there is nothing to send now."""
        with self._database.read() as session:
            delivery = session.get(WaitingDelivery, delivery_id)
            if delivery is None:
                return None
            hook = session.get_one(WebHook, delivery.hook_id)
            project = session.get(Project, delivery.project_id)
        status = web_hooks.alert_status(hook)
        if project is None or status != "executable":
            with self._database.write() as session:
                found = session.get(WaitingDelivery, delivery_id)
                if found is not None and status == "temporarily_disabled" and project is not None:
                    assert hook.disabled_until is not None
                    found.due_at = hook.disabled_until + timedelta(seconds=1)
                elif found is not None:
                    session.delete(found)
            return None
        payload = delivery.payload
        if delivery.commit is not None:
            payload = web_hook_payloads.add_commit(self._config, project, payload, delivery.commit)
        return hook, delivery, payload

    def _done(
        self,
        delivery_id: int,
        sent: WebHook,
        headers: dict[str, str],
        payload: dict[str, Any],
        outcome: Outcome,
    ) -> None:
        with self._database.write() as session:
            hook = session.get(WebHook, sent.id)
            delivery = session.get(WaitingDelivery, delivery_id)
            if hook is None or delivery is None:
                return
            note(hook, outcome)
            entry = log_entry(sent, delivery.trigger, headers, payload, outcome)
            session.add(entry)
            delivery.tries += 1
            if outcome.may_pass and delivery.tries < TRIES:
                wait = self._config.webhook_retry_seconds * GROWTH ** (delivery.tries - 1)
                delivery.due_at = now() + timedelta(seconds=wait)
            else:
                session.delete(delivery)
            session.flush()
            forget_old(session, hook.id)
        log.info("hook %d, %s: %s", sent.id, entry.trigger, outcome.status or outcome.error)

    def _postpone(self, delivery_id: int) -> None:
        with self._database.write() as session:
            delivery = session.get(WaitingDelivery, delivery_id)
            if delivery is not None:
                delivery.tries += 1
                delivery.due_at = now() + timedelta(minutes=10)
                if delivery.tries >= TRIES:
                    session.delete(delivery)


def forget_old(session: Any, hook_id: int) -> None:
    """Keeps a hook's log short: seven days, and not more than ``MOST_LOGGED`` entries."""
    newest = (
        select(DeliveryLog.id)
        .where(DeliveryLog.hook_id == hook_id)
        .order_by(DeliveryLog.id.desc())
        .limit(MOST_LOGGED)
    )
    session.execute(
        delete(DeliveryLog).where(
            DeliveryLog.hook_id == hook_id,
            (DeliveryLog.created_at < now() - KEPT) | DeliveryLog.id.not_in(newest),
        )
    )
