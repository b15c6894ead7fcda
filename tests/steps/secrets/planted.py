"""Secrets of every kind, made at run time from a seed: the repository itself holds none for scanners to flag."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
ALNUM = LOWER + UPPER + DIGITS
HEX = DIGITS + "abcdef"
BASE64 = ALNUM + "+/"
URL64 = ALNUM + "-_"
BASE32 = UPPER + "234567"


class Planted(NamedTuple):
    """A text with one secret."""

    rule: str
    text: str
    secret: str
    """The part of the text that must not leave."""


class Maker:
    """Random parts of secrets. Each has a digit, an upper-case and a lower-case letter where its alphabet does."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, alphabet: str, count: int) -> str:
        classes = [[c for c in alphabet if c in kind] for kind in (DIGITS, UPPER, LOWER)]
        first = [self.random.choice(kind) for kind in classes if kind][:count]
        rest = [self.random.choice(alphabet) for _ in range(count - len(first))]
        # The first and the last characters are no punctuation, as word boundaries are part of some forms.
        plain = [c for c in alphabet if c.isalnum()]
        chosen = first + rest
        self.random.shuffle(chosen)
        for at in {0, count - 1} if count else ():
            if not chosen[at].isalnum():
                chosen[at] = self.random.choice(plain)
        return "".join(chosen)

    def jwt(self) -> str:
        parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": self.some(DIGITS, 10), "name": self.some(LOWER, 8)})
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join([*encoded, self.some(URL64, 43)])

    def key_block(self, kind: str) -> str:
        lines = [self.some(BASE64, 64) for _ in range(6)]
        return "\n".join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----"])


# SecretRule, and a function that makes the secret, bare.
_BARE: list[tuple[str, Callable[[Maker], str]]] = [
    ("aws_access_key_id", lambda m: "AKIA" + m.some(BASE32, 16)),
    ("aws_access_key_id", lambda m: "ASIA" + m.some(BASE32, 16)),
    ("aws_session_token", lambda m: "IQoJb3JpZ2lu" + m.some(BASE64, 200)),
    ("aws_bedrock_api_key", lambda m: "ABSK" + m.some(BASE64, 128)),
    ("aws_mws_token", lambda m: "amzn.mws." + "-".join(m.some(HEX, n) for n in (8, 4, 4, 4, 12))),
    ("gcp_api_key", lambda m: "AIza" + m.some(URL64, 35)),
    ("gcp_oauth_client_secret", lambda m: "GOCSPX-" + m.some(URL64, 28)),
    ("gcp_oauth_access_token", lambda m: "ya29." + m.some(URL64, 100)),
    ("azure_ad_client_secret", lambda m: m.some(ALNUM, 3) + "8Q~" + m.some(ALNUM, 34)),
    ("azure_devops_token", lambda m: m.some(ALNUM, 76) + "AZDO" + m.some(ALNUM, 4)),
    ("alibaba_access_key_id", lambda m: "LTAI" + m.some(ALNUM, 20)),
    ("tencent_secret_id", lambda m: "AKID" + m.some(ALNUM, 32)),
    ("yandex_api_key", lambda m: "AQVN" + m.some(URL64, 36)),
    ("digitalocean_token", lambda m: "dop_v1_" + m.some(HEX, 64)),
    ("heroku_api_key", lambda m: "HRKU-AA" + m.some(URL64, 58)),
    ("cloudflare_origin_key", lambda m: "v1.0-" + m.some(HEX, 24) + "-" + m.some(HEX, 146)),
    ("fly_access_token", lambda m: "fo1_" + m.some(URL64, 43)),
    ("github_token", lambda m: "ghp_" + m.some(ALNUM, 36)),
    ("github_token", lambda m: "ghs_" + m.some(ALNUM, 36)),
    ("github_fine_grained_token", lambda m: "github_pat_" + m.some(ALNUM, 22) + "_" + m.some(ALNUM, 59)),
    ("gitlab_token", lambda m: "glpat-" + m.some(URL64, 20)),
    ("gitlab_runner_registration_token", lambda m: "GR1348941" + m.some(URL64, 20)),
    ("bitbucket_app_password", lambda m: "ATBB" + m.some(ALNUM, 32)),
    ("atlassian_api_token", lambda m: "ATATT3" + m.some(URL64, 186)),
    ("npm_token", lambda m: "npm_" + m.some(ALNUM, 36)),
    ("pypi_token", lambda m: "pypi-AgEIcHlwaS5vcmc" + m.some(URL64, 120)),
    ("rubygems_token", lambda m: "rubygems_" + m.some(HEX, 48)),
    ("nuget_api_key", lambda m: "oy2" + m.some(LOWER + DIGITS, 43)),
    ("crates_io_token", lambda m: "cio" + m.some(ALNUM, 32)),
    ("clojars_token", lambda m: "CLOJARS_" + m.some(HEX, 60)),
    ("docker_hub_token", lambda m: "dckr_pat_" + m.some(URL64, 27)),
    ("artifactory_api_key", lambda m: "AKCp" + m.some(ALNUM, 69)),
    ("sonar_token", lambda m: "squ_" + m.some(HEX, 40)),
    ("readme_api_key", lambda m: "rdme_" + m.some(LOWER + DIGITS, 70)),
    ("postman_api_key", lambda m: "PMAK-" + m.some(HEX, 24) + "-" + m.some(HEX, 34)),
    ("vault_token", lambda m: "hvs." + m.some(URL64, 90)),
    ("terraform_cloud_token", lambda m: m.some(ALNUM, 14) + ".atlasv1." + m.some(URL64, 67)),
    ("pulumi_token", lambda m: "pul-" + m.some(HEX, 40)),
    ("doppler_token", lambda m: "dp.pt." + m.some(ALNUM, 43)),
    ("databricks_token", lambda m: "dapi" + m.some(HEX, 32)),
    ("planetscale_token", lambda m: "pscale_tkn_" + m.some(URL64, 43)),
    ("supabase_token", lambda m: "sbp_" + m.some(HEX, 40)),
    ("onepassword_service_token", lambda m: "ops_eyJ" + m.some(ALNUM, 250)),
    ("age_secret_key", lambda m: "AGE-SECRET-KEY-1" + m.some("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)),
    ("nats_seed", lambda m: "SUA" + m.some(BASE32, 55)),
    ("grafana_token", lambda m: "glsa_" + m.some(ALNUM, 32) + "_" + m.some(HEX, 8)),
    ("newrelic_key", lambda m: "NRAK-" + m.some(UPPER + DIGITS, 27)),
    ("sentry_token", lambda m: "sntrys_" + m.some(ALNUM, 100)),
    ("dynatrace_token", lambda m: "dt0c01." + m.some(UPPER + DIGITS, 24) + "." + m.some(UPPER + DIGITS, 64)),
    ("slack_token", lambda m: "xoxb-" + m.some(DIGITS, 12) + "-" + m.some(DIGITS, 12) + "-" + m.some(ALNUM, 24)),
    (
        "slack_token",
        lambda m: "xapp-1-A" + m.some(UPPER + DIGITS, 10) + "-" + m.some(DIGITS, 12) + "-" + m.some(HEX, 64),
    ),
    ("discord_bot_token", lambda m: "M" + m.some(ALNUM, 23) + "." + m.some(ALNUM, 6) + "." + m.some(ALNUM, 38)),
    ("telegram_bot_token", lambda m: m.some("123456789", 10) + ":AA" + m.some(URL64, 33)),
    ("stripe_api_key", lambda m: "sk_" + "live_" + m.some(ALNUM, 24)),
    ("stripe_webhook_secret", lambda m: "whsec_" + m.some(ALNUM, 32)),
    ("square_token", lambda m: "sq0atp-" + m.some(URL64, 22)),
    (
        "braintree_access_token",
        lambda m: "access_token$production$" + m.some(LOWER + DIGITS, 16) + "$" + m.some(HEX, 32),
    ),
    ("shopify_token", lambda m: "shpat_" + m.some(HEX, 32)),
    ("twilio_api_key", lambda m: "SK" + m.some(HEX, 32)),
    ("sendgrid_api_key", lambda m: "SG." + m.some(URL64, 22) + "." + m.some(URL64, 43)),
    ("mailgun_api_key", lambda m: "key-" + m.some(HEX, 32)),
    ("mailchimp_api_key", lambda m: m.some(HEX, 32) + "-us12"),
    ("brevo_api_key", lambda m: "xkeysib-" + m.some(HEX, 64) + "-" + m.some(ALNUM, 16)),
    ("openai_api_key", lambda m: "sk-proj-" + m.some(URL64, 74) + "T3BlbkFJ" + m.some(URL64, 74)),
    ("anthropic_api_key", lambda m: "sk-ant-api03-" + m.some(URL64, 93) + "AA"),
    ("huggingface_token", lambda m: "hf_" + m.some(ALNUM, 34)),
    ("groq_api_key", lambda m: "gsk_" + m.some(ALNUM, 52)),
    ("perplexity_api_key", lambda m: "pplx-" + m.some(ALNUM, 48)),
    ("replicate_token", lambda m: "r8_" + m.some(ALNUM, 37)),
    ("xai_api_key", lambda m: "xai-" + m.some(ALNUM, 80)),
    ("linear_api_key", lambda m: "lin_api_" + m.some(ALNUM, 40)),
    ("notion_token", lambda m: "ntn_" + m.some(ALNUM, 46)),
    ("airtable_token", lambda m: "pat" + m.some(ALNUM, 14) + "." + m.some(HEX, 64)),
    ("figma_token", lambda m: "figd_" + m.some(URL64, 40)),
    ("dropbox_token", lambda m: "sl.u." + m.some(URL64, 140)),
    ("mapbox_secret_token", lambda m: "sk.eyJ" + m.some(ALNUM, 80) + "." + m.some(URL64, 22)),
    ("adafruit_io_key", lambda m: "aio_" + m.some(ALNUM, 28)),
    ("jwt", lambda m: m.jwt()),
    ("jwe", lambda m: "eyJ" + ".".join(m.some(ALNUM, 40) for _ in range(5))),
    ("private_key", lambda m: m.key_block("RSA ")),
    ("private_key", lambda m: m.key_block("OPENSSH ")),
    ("private_key", lambda m: m.key_block("")),
]

# SecretRule, the text before, the secret, the text behind.
_INSIDE: list[tuple[str, str, Callable[[Maker], str], str]] = [
    ("aws_secret_access_key", "aws_secret_access_key = ", lambda m: m.some(BASE64, 40), "\n"),
    ("azure_storage_key", "DefaultEndpointsProtocol=https;AccountKey=", lambda m: m.some(BASE64, 86) + "==", ";"),
    ("azure_shared_access_key", "Endpoint=sb://n/;SharedAccessKey=", lambda m: m.some(BASE64, 43) + "=", ";"),
    ("azure_sas_signature", "https://a.example/b?sv=2024-08-04&sig=", lambda m: m.some(ALNUM, 43) + "%3D", "&se=1"),
    ("npmrc_auth_token", "//npm.example/:_auth" + "Token=", lambda m: m.some(ALNUM, 40), "\n"),
    ("docker_registry_auth", '{"auths": {"r.example": {"auth": "', lambda m: m.some(BASE64, 32), '"}}}'),
    (
        "slack_webhook",
        "https://hooks.slack.com/services/",
        lambda m: "/".join(m.some(UPPER + DIGITS, n) for n in (9, 11, 24)),
        " ",
    ),
    (
        "discord_webhook",
        "https://discord.com/api/webhooks/",
        lambda m: m.some(DIGITS, 18) + "/" + m.some(URL64, 68),
        " ",
    ),
    (
        "teams_webhook",
        "https://x.webhook.office.com/webhookb2/",
        lambda m: m.some(HEX, 36) + "@" + m.some(HEX, 36) + "/IncomingWebhook/" + m.some(HEX, 32),
        " ",
    ),
    ("putty_private_key", "PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n", lambda m: m.some(BASE64, 48), "\n"),
    ("basic_auth_url", "postgres://app:", lambda m: m.some(ALNUM, 14), "@db.example:5432/app"),
    ("basic_auth_url", "clone https://bot:", lambda m: m.some(ALNUM, 20), "@git.example/x.git"),
    ("authorization_bearer", "curl -H 'Authorization: Bearer ", lambda m: m.some(ALNUM, 40), "'"),
    ("authorization_basic", "Authorization: Basic ", lambda m: m.some(BASE64, 32), "\n"),
    ("generic_password", "DB_PASSWORD=", lambda m: m.some(ALNUM + "!%*", 14), "\n"),
    ("generic_password", 'password: "', lambda m: m.some(ALNUM, 12), '"'),
    ("generic_password", "the password is ", lambda m: m.some(ALNUM, 12), ", she said"),
    ("password_option", "mysql --password=", lambda m: m.some(ALNUM, 14), " app"),
    ("generic_api_key", "api_key: ", lambda m: m.some(ALNUM, 32), "\n"),
    ("generic_api_key", "const clientSecret = '", lambda m: m.some(ALNUM, 24), "';"),
    ("generic_api_key", '{"access_token": "', lambda m: m.some(ALNUM, 40), '"}'),
]


def planted(seed: int = 1) -> Iterator[Planted]:
    """Yield secrets of every kind: bare inside a sentence, or in the text that tells their kind."""
    maker = Maker(seed)
    for rule, make in _BARE:
        secret = make(maker)
        yield Planted(rule, f"We can use {secret} for the first deployment.", secret)
    for rule, before, make, after in _INSIDE:
        secret = make(maker)
        yield Planted(rule, f"{before}{secret}{after}", secret)
