"""Proposals without secrets as agents write them, made from a seed: code, hashes, ids, images, addresses, locks."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator

# The words that a search for secrets looks for are among them.
WORDS = (
    "session",
    "passkey",
    "login",
    "story",
    "backlog",
    "estimate",
    "deploy",
    "rollback",
    "queue",
    "token",
    "password",
    "secret",
    "credential",
    "review",
    "cache",
    "index",
    "schema",
    "migration",
    "worker",
    "partition",
    "replay",
    "gate",
    "approval",
    "guard",
    "timeout",
    "retry",
    "latency",
    "budget",
    "metric",
    "alert",
    "owner",
    "team",
    "role",
    "vault",
    "rotation",
    "audit",
    "consent",
    "cookie",
    "header",
    "bearer",
    "signature",
    "certificate",
    "keystore",
    "policy",
    "scope",
    "claim",
    "tenant",
    "billing",
)
HEX = "0123456789abcdef"
ALNUM = string.ascii_letters + string.digits


class Writer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def word(self) -> str:
        return self.random.choice(WORDS)

    def words(self, count: int) -> str:
        return " ".join(self.word() for _ in range(count))

    def number(self, most: int = 99) -> int:
        return self.random.randint(1, most)

    def bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)

    def hex(self, count: int) -> str:
        return "".join(self.random.choice(HEX) for _ in range(count))

    def uuid(self) -> str:
        return str(uuid.UUID(bytes=self.bytes(16), version=4))

    def base64(self, count: int) -> str:
        return base64.b64encode(self.bytes(count)).decode()

    def integrity(self) -> str:
        return "sha512-" + self.base64(64)

    def version(self) -> str:
        return f"{self.number(9)}.{self.number(30)}.{self.number(30)}"

    def sentence(self) -> str:
        return f"{self.words(self.number(12) + 4).capitalize()}{self.random.choice('.?!:;')}"


def _prose(w: Writer) -> str:
    facts = [
        "Users keep their password; the token of a session lives 15 minutes and the refresh token 30 days.",
        "Store secrets in Vault, never in the repository: the secret is mounted as a file, the password is read once.",
        "The password must have 12 characters, one digit and one of !#$%; the API key is shown only once.",
        "Access token: short-lived, bound to the client. Refresh token: rotated at each use (RFC 9700).",
        "Password: see the vault entry `db/prod`. Token: ask the platform team. API key: none is needed.",
        "Authorization: Bearer <token>, or Basic with the client's id; see https://oauth.net/2/bearer-tokens/.",
    ]
    return "\n\n".join([w.sentence(), w.random.choice(facts), *(w.sentence() for _ in range(w.number(8)))])


def _python(w: Writer) -> str:
    name, other = w.word(), w.word()
    return f"""
import os, secrets
from dataclasses import dataclass

PASSWORD_MIN_LENGTH = {w.number()}
TOKEN_TTL_SECONDS = {w.number(9999)}
SECRET_NAME = "projects/{w.number()}/secrets/{name}-{other}/versions/latest"

@dataclass
class {name.capitalize()}Config:
    password: str = field(repr=False)
    api_key: str | None = None
    secret_key_file: Path = Path("/run/secrets/{name}_key")
    token_url: str = "https://auth.example.org/oauth2/token"

def {name}_{other}(user: User, password: str, token: str = "") -> Session:
    secret = os.environ["{name.upper()}_SECRET"]
    api_key = os.getenv("API_KEY_{w.number()}", default=None)
    token = request.headers.get("x-{other}-token") or secrets.token_urlsafe(32)
    password_hash = bcrypt.hashpw(password.encode(), bcrypt.gensalt({w.number(14)}))
    access_token = self.oauth2_client.fetch_access_token2(scope="{other}")
    client_secret=settings.oauth2.client_secret
    credentials: OAuth2PasswordRequestForm = Depends()
    private_key = serialization.load_pem_private_key(data, password=None)
    assert token == jwt.encode({{"sub": user.id}}, secret, algorithm="HS256")
    return Session(user, token=token, password=None, secret=secret, api_key=config.api_key)
"""


def _typescript(w: Writer) -> str:
    return f"""
export interface Credentials {{ password: string; apiKey?: string; token: JwtToken<{w.word()}>; }}
const secretKey = process.env.SECRET_KEY_{w.number()} ?? "";
const accessToken = await auth0Client.getTokenSilently({{ audience: `${{API_URL}}/v{w.number()}` }});
const password = form.controls.password1.value, token = parseToken(headers['x-api-key']);
fetch(url, {{ headers: {{ Authorization: `Bearer ${{accessToken}}`, 'X-Api-Key': config.apiKey }} }});
if (token === Token.LeftParen2) {{ this.tokens.push({{ kind: "token", secret: undefined }}); }}
export const selectToken = createSelector(selectAuthState2, (state) => state.accessToken);
"""


def _compose(w: Writer) -> str:
    return f"""
services:
  {w.word()}:
    image: registry.example.org/{w.word()}/{w.word()}@sha256:{w.hex(64)}
    environment:
      POSTGRES_PASSWORD: ${{POSTGRES_PASSWORD:?set it}}
      API_KEY: ${{API_KEY}}
      DATABASE_URL: postgres://app:${{DB_PASSWORD}}@db:5432/{w.word()}
      REDIS_URL: redis://cache:6379/{w.number(9)}
      SECRET_KEY_FILE: /run/secrets/{w.word()}_key
      TOKEN_ISSUER: https://issuer{w.number()}.example.org/realms/{w.word()}
    secrets: [{w.word()}-password-v{w.number()}, {w.word()}-token]
"""


def _kubernetes(w: Writer) -> str:
    return f"""
apiVersion: v1
kind: Deployment
metadata:
  uid: {w.uuid()}
  annotations: {{checksum/secret: {w.hex(64)}}}
spec:
  env:
    - name: DB_PASSWORD
      valueFrom: {{secretKeyRef: {{name: {w.word()}-db-credentials-{w.number()}, key: password}}}}
  imagePullSecrets: [{{name: registry-{w.word()}-2}}]
  serviceAccountToken: {{path: token, expirationSeconds: {w.number(9999)}}}
  secretName: {w.word()}-tls-2026
"""


def _sql(w: Writer) -> str:
    return f"""
ALTER TABLE users ADD COLUMN password_hash bytea NOT NULL, ADD COLUMN token_id uuid DEFAULT '{w.uuid()}';
UPDATE sessions SET token = NULL, secret = DEFAULT WHERE id = '{w.uuid()}' AND digest = '\\x{w.hex(64)}';
CREATE INDEX idx_token_{w.number()} ON tokens (access_token_hash, created_at) WHERE password IS NOT NULL;
"""


def _hashes(w: Writer) -> str:
    data = w.bytes(20)
    names = ("md5", "sha1", "sha256", "sha384", "sha512", "blake2b")
    lines = [f"{name}: {hashlib.new(name, data).hexdigest()}  {w.word()}.tar.gz" for name in names]
    return "\n".join([*lines, f"commit {w.hex(40)}", f"Change-Id: I{w.hex(40)}", f'etag: W/"{w.hex(32)}-gzip"'])


def _ids(w: Writer) -> str:
    crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    ulid = "01" + "".join(w.random.choice(crockford) for _ in range(24))
    nano = "".join(w.random.choice(ALNUM + "_-") for _ in range(21))
    trace = f"00-{w.hex(32)}-{w.hex(16)}-01"
    return (
        f"story {w.uuid()}, urn:uuid:{w.uuid()}, ulid {ulid}, nanoid {nano}, traceparent {trace}, "
        f"request id req_{nano}, idempotency_key: c{w.number()}:s{w.number()}/{w.number()}/1@4, object {w.hex(24)}, "
        f"arn:aws:secretsmanager:eu-west-1:{w.number(10**12 - 1):012d}:secret:prod/{w.word()}-Ab{w.number()}cD"
    )


def _image(w: Writer) -> str:
    png = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + w.bytes(w.number(6000))
    style = w.random.choice(
        ["![sketch](data:image/png;base64,{0})", '<img src="data:image/png;base64,{0}">', "image: {0}"]
    )
    return style.format(base64.b64encode(png).decode())


def _wrapped_base64(w: Writer) -> str:
    text = w.base64(w.number(900) + 200)
    return "attachment (gzip, base64):\n" + "\n".join(text[at : at + 76] for at in range(0, len(text), 76))


def _addresses(w: Writer) -> str:
    return "\n".join(
        [
            f"https://git.example.org/{w.word()}/{w.word()}/-/merge_requests/{w.number(9999)}#note_{w.number(10**6)}",
            f"https://example.org/search?q={w.word()}+token&page_size={w.number()}&sort=-created_at&utm_id={w.hex(16)}",
            f"https://cdn.example.org/assets/app.{w.hex(20)}.js?v={w.hex(8)}&password=&token=",
            f"git@git.example.org:{w.word()}/{w.word()}.git, ssh://git@git.example.org:2222/{w.word()}.git",
            f"nats://nats:4222, bolt://neo4j:7687, redis://cache:6379/0, mailto:{w.word()}@example.org",
            f"postgres://app:***@db.example.org:5432/{w.word()}, https://{{user}}:{{password}}@host/{w.word()}",
            f"https://pkg.example.org/@scope/{w.word()}@{w.version()}/+esm, http://localhost:8080/@fs/{w.word()}@2/x",
        ]
    )


def _package_lock(w: Writer) -> str:
    packages = {}
    for name in ("js-tokens", "@octokit/auth-token", "csrf-tokens", "secret-stack", "password-prompt", w.word()):
        version = w.version()
        packages[f"node_modules/{name}"] = {
            "version": version,
            "resolved": f"https://registry.npmjs.org/{name}/-/{name}-{version}.tgz",
            "integrity": w.integrity(),
            "dependencies": {"js-tokens": "^3.0.0 || ^4.0.0"},
        }
    return json.dumps({"lockfileVersion": 3, "packages": packages}, indent=2)


def _yarn_lock(w: Writer) -> str:
    version = w.version()
    return f"""
"@babel/{w.word()}@^{version}", js-tokens@^{version}:
  version "{version}"
  resolved "https://registry.yarnpkg.com/js-tokens/-/js-tokens-{version}.tgz#{w.hex(40)}"
  integrity {w.integrity()}
  checksum: 10c0/{w.hex(128)}
"""


def _python_lock(w: Writer) -> str:
    return f"""
[[package]]
name = "{w.word()}"
version = "{w.version()}"
content-hash = "{w.hex(64)}"
files = [{{file = "{w.word()}-{w.version()}-cp312-cp312-manylinux_2_17_x86_64.whl", hash = "sha256:{w.hex(64)}"}}]

cryptography=={w.version()} \\
    --hash=sha256:{w.hex(64)} \\
    --hash=sha256:{w.hex(64)}
"""


def _cargo_and_go(w: Writer) -> str:
    return f"""
[[package]]
name = "secrecy"
version = "{w.version()}"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "{w.hex(64)}"

github.com/golang-jwt/jwt/v4 v{w.version()} h1:{w.base64(32)}
github.com/hashicorp/vault/api/auth/token v{w.version()}/go.mod h1:{w.base64(32)}
"""


def _certificate(w: Writer) -> str:
    lines = [w.base64(48) for _ in range(12)]
    public = w.base64(32)
    return "\n".join(
        [
            "-----BEGIN CERTIFICATE-----",
            *lines,
            "-----END CERTIFICATE-----",
            f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5{public} me@host",
            "-----BEGIN PUBLIC KEY-----",
            *lines[:4],
            "-----END PUBLIC KEY-----",
            f"pin-sha256={w.base64(32)}; max-age=5184000",
            "A key begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----.",
        ]
    )


def _diff(w: Writer) -> str:
    return f"""
diff --git a/{w.word()}.py b/{w.word()}.py
index {w.hex(11)}..{w.hex(11)} 100644
@@ -{w.number()},7 +{w.number()},9 @@ def {w.word()}(token: str) -> None:
-    password = getpass.getpass("password: ")
+    password = read_password_file(Path(args.password_file).resolve())
+    token = Token.from_bytes(payload[4:20], kind=TokenKind.REFRESH_2)
"""


def _log(w: Writer) -> str:
    second, peer = (
        f"{w.number(59):02d}.{w.number(999):03d}Z",
        f"10.{w.number()}.{w.number()}.{w.number()}:{w.number(65535)}",
    )
    lines = [
        f"2026-0{w.number(9)}-1{w.number(9)}T10:11:{second} INFO token=absent user={w.uuid()} took={w.number()}ms",
        f"WARN invalid password for user {w.word()}{w.number()} from {peer}",
        f"max_tokens=4096 prompt_tokens={w.number(9999)} completion_tokens={w.number(9999)} total_tokens: {w.number()}",
        f"0x{w.hex(16)}: {' '.join(w.hex(4) for _ in range(8))}  ..{w.word()}..",
    ]
    return "\n".join(lines)


def _schema(w: Writer) -> str:
    return json.dumps(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"https://example.org/{w.word()}/v{w.number()}",
            "properties": {
                "password": {"type": "string", "minLength": 12, "format": "password", "description": w.sentence()},
                "token": {"$ref": "#/$defs/token"},
                "api_key": {"type": "string", "pattern": "^[A-Za-z0-9_-]{32}$", "examples": ["<your api key>"]},
                "secret": {"const": None, "default": "", "title": "Secret2"},
            },
            "required": ["password", "token"],
        }
    )


def _drawing(w: Writer) -> str:
    points = " ".join(
        f"{w.random.choice('MLCQ')}{w.random.random() * 99:.3f} {w.random.random() * 99:.3f}" for _ in range(60)
    )
    graph = "```mermaid\ngraph TD; A[token]-->B{password?}\n```"
    return f'<svg viewBox="0 0 99 99"><path d="{points}" fill="#{w.hex(6)}"/></svg>\n{graph}'


def _styles(w: Writer) -> str:
    return (
        f".{w.word()}-{w.hex(8)} {{ background: url(/img/{w.hex(32)}.webp); --token-color: #{w.hex(8)}; }} "
        f".sk-circle2 .sk-child {{ width: {w.number()}% }}"
    )


def _tasks(w: Writer) -> str:
    tasks = [
        {
            "title": w.words(4),
            "description": _prose(w),
            "estimated_hours": w.number(40),
            "deliberation_indices": [0, 1],
            "priority": n,
        }
        for n in range(w.number(6))
    ]
    return json.dumps({"tasks": tasks}, ensure_ascii=False)


def _shell(w: Writer) -> str:
    base = f"https://api.example.org/v{w.number()}"
    return f"""
export DB_PASSWORD="$(cat /run/secrets/{w.word()}2)" API_KEY=$API_KEY_{w.number()} TOKEN=`gcloud print-access-token`
curl -fsSL -H "Authorization: Bearer $TOKEN" -H "X-Api-Key: ${{API_KEY}}" {base}/{w.word()}
docker run --rm -e PASSWORD -e SECRET_KEY_BASE registry.example.org/{w.word()}:{w.version()}
psql --no-password --token-file=/etc/{w.word()}/token2
kubectl create secret generic {w.word()}-2 --from-file=password=./pw.txt
"""


def _numbers(w: Writer) -> str:
    rows = [f"{w.number(10**6)},{w.random.random():.17f},{w.hex(12)},{w.number(10**15)}" for _ in range(40)]
    return "id,score,key,token_count\n" + "\n".join(rows)


FAMILIES: tuple[Callable[[Writer], str], ...] = (
    _prose,
    _python,
    _typescript,
    _compose,
    _kubernetes,
    _sql,
    _hashes,
    _ids,
    _image,
    _wrapped_base64,
    _addresses,
    _package_lock,
    _yarn_lock,
    _python_lock,
    _cargo_and_go,
    _certificate,
    _diff,
    _log,
    _schema,
    _drawing,
    _styles,
    _tasks,
    _shell,
    _numbers,
)


def ordinary(count: int = 1000, seed: int = 1) -> Iterator[str]:
    """Yield proposals of every family in turn; some hold two families."""
    writer = Writer(seed)
    for number in range(count):
        text = FAMILIES[number % len(FAMILIES)](writer)
        yield text if number % 3 else f"{_prose(writer)}\n\n{text}\n\n{writer.sentence()}"
