r"""The rules: names, forms and keywords of secrets, one line or two for each.

The forms are facts of their issuers' documentation; that there are these kinds was checked against the lists of
detect-secrets, gitleaks and kingfisher. Names never change. A form with a prefix of its own needs no entropy; a keyword
with any value behind it (`password = …`) does.
"""

from __future__ import annotations

from steps.secrets.search import SecretRule

# Behind the name of a setting: quotes, a colon or an equals sign, and quotes; in source code they may be escaped.
_IS = rb"""\\*["'`]?[ \t]{0,3}(?:=>|:=|[:=])[ \t]{0,3}\\*["'`]?"""
# Behind a value. JSON ends a text with a quote, so nothing here depends on a text's end.
_END = rb"""(?:["'`\s,;<>)}\]\\|&]|$)"""
# Names of settings around their keyword: DB_PASSWORD_PROD, secret_key_base.
_SUFFIX = rb"s?(?:[_.-]?(?:base|key|value|hash|base64|prod|production|dev|live|test|staging|v?\d{1,2}))?"
# Before the keyword of a setting; `checksum/secret` and `arn:…:secret:` are none.
_NAME = rb"(?:^|[^\w.:/-])[\w.-]*"
# No secrets: no digit or no letter, a UUID, an address or ARN, a variable, a path, names with dots, words with hyphens.
_ORDINARY = (
    rb"^[^0-9]*$|^[^A-Za-z]*$"
    rb"|^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
    rb"|://|^(?:arn|urn|sha\d{1,3}|md5|data|vault|ssm|op|env|file):"
    rb"|^\$\w+$|^%\w+%?$|^(?:~|\.{1,2})?/"
    rb"|^[A-Za-z_$][\w$]*(?:(?:\.|::|->)[A-Za-z_$][\w$]*)+$"
    rb"|^(?:[A-Za-z]{2,}\d{0,2}[-_./:])+[A-Za-z]{0,20}\d{0,2}$"
)
# Identifiers of programs, which have few digits: PKCS7PrivateKeyTypes, _convert_oauth2_credentials.
_WORDS = rb"(?:[A-Z]?[a-z]{2,}|[A-Z]{2,}|[_$])"
_IDENTIFIER = rb"|^" + _WORDS + rb"*(?:\d{1,2}" + _WORDS + rb"+)*\d{0,2}$"
# Passwords that stand for one: `***`, `xxxx`, `$PASSWORD`, `{password}`, `<password>`, `%s`.
_PLACEHOLDER = rb"(?i)^(?:pass|passwd|password|pwd|\*+|[xX]+|\.+|\$.*|[{%].*|.*[}]|<.*|redacted)$"
_PEM = rb"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----"
_PEM_LINE = rb"(?:\s|\\+[nr])"
_PEM_BODY = rb"[A-Za-z0-9+/]{16}[A-Za-z0-9+/=]*(?:" + _PEM_LINE + rb"+[A-Za-z0-9+/=]{16,})*"

_CLOUDS = (
    SecretRule("aws_access_key_id", rb"\b((?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z0-9]{16})\b"),
    SecretRule(
        "aws_secret_access_key",
        rb"(?i)(?:aws[\w.-]*(?:key|secret)|secret[_-]?access|access[_-]?key|secret[_-]?key)[\w.-]*"
        + _IS
        + rb"([A-Za-z0-9/+]{40})"
        + _END,
        3.5,
        rb"^[0-9a-f]{40}$|^[^0-9]*$",
    ),
    SecretRule("aws_session_token", rb"\b((?:FwoGZXIvYXdz|IQoJb3JpZ2lu)[A-Za-z0-9/+=]{50,})"),
    SecretRule("aws_bedrock_api_key", rb"\b(ABSK[A-Za-z0-9+/]{100,}={0,2})"),
    SecretRule("aws_mws_token", rb"\b(amzn\.mws\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b"),
    SecretRule("gcp_api_key", rb"\b(AIza[A-Za-z0-9_-]{35})"),
    SecretRule("gcp_oauth_client_secret", rb"\b(GOCSPX-[A-Za-z0-9_-]{28})"),
    SecretRule("gcp_oauth_access_token", rb"\b(ya29\.[A-Za-z0-9_-]{20,})"),
    SecretRule(
        "azure_storage_key", rb"(?i)(?:AccountKey|storage[_.-]?(?:account[_.-]?)?key)" + _IS + rb"([A-Za-z0-9+/]{86}==)"
    ),
    SecretRule("azure_shared_access_key", rb"(?i)SharedAccessKey" + _IS + rb"([A-Za-z0-9+/]{43}=)"),
    SecretRule("azure_ad_client_secret", rb"(?:^|[^A-Za-z0-9_~.-])([A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34})", 3.5),
    SecretRule("azure_sas_signature", rb"(?i)[?&;]sig=([A-Za-z0-9%+/]{40,}(?:=|%3D){1,2})", 3.5),
    SecretRule("azure_devops_token", rb"\b([A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4})\b"),
    SecretRule("alibaba_access_key_id", rb"\b(LTAI[A-Za-z0-9]{17,21})\b", 3.0),
    SecretRule("tencent_secret_id", rb"\b(AKID[A-Za-z0-9]{32})\b", 3.0),
    SecretRule("yandex_api_key", rb"\b(AQVN[A-Za-z0-9_-]{35,38})\b", 3.0),
    SecretRule("digitalocean_token", rb"\b(do[opr]_v1_[0-9a-f]{64})\b"),
    SecretRule("heroku_api_key", rb"\b(HRKU-AA[A-Za-z0-9_-]{58})"),
    SecretRule("cloudflare_origin_key", rb"\b(v1\.0-[0-9a-f]{24}-[0-9a-f]{146})\b"),
    SecretRule("fly_access_token", rb"\b(fo1_[A-Za-z0-9_-]{43}|fm[12][ar]?_[A-Za-z0-9+/=]{100,})"),
)

_CODE_AND_PACKAGES = (
    SecretRule("github_token", rb"\b(gh[pousr]_[A-Za-z0-9]{36,})"),
    SecretRule("github_fine_grained_token", rb"\b(github_pat_[A-Za-z0-9_]{82})"),
    SecretRule(
        "gitlab_token", rb"\b(gl(?:pat|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct|oas)-[A-Za-z0-9_.=-]{20,})", 3.0
    ),
    SecretRule("gitlab_runner_registration_token", rb"\b(GR1348941[A-Za-z0-9_-]{20})"),
    SecretRule("bitbucket_app_password", rb"\b(ATBB[A-Za-z0-9_=-]{32,})", 3.0),
    SecretRule("atlassian_api_token", rb"\b(AT[AC]TT3[A-Za-z0-9_=-]{60,})"),
    SecretRule("npm_token", rb"\b(npm_[A-Za-z0-9]{36})\b"),
    SecretRule(
        "npmrc_auth_token", rb"(?:^|[:\s])_auth(?:Token)?\s{0,3}=\s{0,3}[\"']?([A-Za-z0-9_.+/=-]{20,})", 3.0, _ORDINARY
    ),
    SecretRule("pypi_token", rb"\b(pypi-AgE[A-Za-z0-9_-]{50,})"),
    SecretRule("rubygems_token", rb"\b(rubygems_[0-9a-f]{48})\b"),
    SecretRule("nuget_api_key", rb"\b(oy2[a-z0-9]{43})\b", 3.0),
    SecretRule("crates_io_token", rb"\b(cio[A-Za-z0-9]{32})\b", 3.5),
    SecretRule("clojars_token", rb"\b(CLOJARS_[0-9a-f]{60})\b"),
    SecretRule("docker_hub_token", rb"\b(dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,})"),
    SecretRule("docker_registry_auth", rb'"auth"\s{0,3}:\s{0,3}"([A-Za-z0-9+/]{20,}={0,2})"', 3.0),
    SecretRule("artifactory_api_key", rb"\b(AKCp[A-Za-z0-9]{60,})\b"),
    SecretRule("sonar_token", rb"\b(sq[pua]_[0-9a-f]{40})\b"),
    SecretRule("readme_api_key", rb"\b(rdme_[a-z0-9]{70})\b"),
    SecretRule("postman_api_key", rb"\b(PMAK-[0-9a-f]{24}-[0-9a-f]{34})\b"),
)

_INFRASTRUCTURE = (
    SecretRule("vault_token", rb"\b(hv[sbr]\.[A-Za-z0-9_-]{24,})", 3.0),
    SecretRule("terraform_cloud_token", rb"\b([A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,})"),
    SecretRule("pulumi_token", rb"\b(pul-[0-9a-f]{40})\b"),
    SecretRule("doppler_token", rb"\b(dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9.]{40,})"),
    SecretRule("databricks_token", rb"\b(dapi[0-9a-f]{32}(?:-\d)?)\b"),
    SecretRule("planetscale_token", rb"\b(pscale_(?:pw|tkn|oauth)_[A-Za-z0-9_.=-]{32,})"),
    SecretRule("supabase_token", rb"\b(sbp_[0-9a-f]{40}|sb_secret_[A-Za-z0-9_-]{20,})"),
    SecretRule("onepassword_service_token", rb"\b(ops_eyJ[A-Za-z0-9+/_-]{100,}={0,2})"),
    SecretRule("age_secret_key", rb"\b(AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58})\b"),
    SecretRule("nats_seed", rb"\b(S[UAONXC][A-Z2-7]{56})\b", 3.5),
    SecretRule("grafana_token", rb"\b(glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|glc_[A-Za-z0-9+/]{32,}={0,2})"),
    SecretRule("newrelic_key", rb"\b(NR(?:AK|II|IQ)-[A-Za-z0-9_-]{27,32}|NRJS-[0-9a-f]{19})\b"),
    SecretRule("sentry_token", rb"\b(sntr[yu]s?_[A-Za-z0-9+/=_-]{40,})"),
    SecretRule("dynatrace_token", rb"\b(dt0[a-z]\d{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64})\b"),
)

_SERVICES = (
    SecretRule("slack_token", rb"\b((?:xox[abceoprs]|xoxe\.xox[bp])-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{20,})", 2.5),
    SecretRule(
        "slack_webhook", rb"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9_-]{8,}/[A-Za-z0-9_/-]{20,})"
    ),
    SecretRule("discord_bot_token", rb"\b([MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38})\b", 3.5),
    SecretRule("discord_webhook", rb"discord(?:app)?\.com/api/webhooks/(\d{17,20}/[A-Za-z0-9_-]{60,})"),
    SecretRule(
        "teams_webhook", rb"webhook\.office\.com/webhookb2/([0-9a-f@/-]{36,}IncomingWebhook/[A-Za-z0-9/_-]{32,})"
    ),
    SecretRule("telegram_bot_token", rb"\b(\d{8,10}:AA[A-Za-z0-9_-]{32,33})", 3.0),
    SecretRule("stripe_api_key", rb"\b((?:sk|rk)_(?:live|test|prod)_[A-Za-z0-9]{16,})\b", 3.0),
    SecretRule("stripe_webhook_secret", rb"\b(whsec_[A-Za-z0-9+/]{24,}={0,2})", 3.0),
    SecretRule("square_token", rb"\b(sq0(?:atp|csp)-[A-Za-z0-9_-]{22,43})"),
    SecretRule("braintree_access_token", rb"(access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32})\b"),
    SecretRule("shopify_token", rb"\b(shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32})\b"),
    SecretRule("twilio_api_key", rb"\b(SK[0-9a-f]{32})\b"),
    SecretRule("sendgrid_api_key", rb"\b(SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64})", 3.5),
    SecretRule("mailgun_api_key", rb"\b(key-[0-9a-f]{32}|[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8})\b"),
    SecretRule("mailchimp_api_key", rb"\b([0-9a-f]{32}-us\d{1,2})\b"),
    SecretRule("brevo_api_key", rb"\b(xkeysib-[0-9a-f]{64}-[A-Za-z0-9]{16})\b"),
    SecretRule("openai_api_key", rb"\b(sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}|sk-[A-Za-z0-9]{40,})", 3.5),
    SecretRule("anthropic_api_key", rb"\b(sk-ant-[a-z0-9]{3,10}-[A-Za-z0-9_-]{40,})"),
    SecretRule("huggingface_token", rb"\b((?:hf_|api_org_)[A-Za-z0-9]{34,})\b", 3.0),
    SecretRule("groq_api_key", rb"\b(gsk_[A-Za-z0-9]{52})\b"),
    SecretRule("perplexity_api_key", rb"\b(pplx-[A-Za-z0-9]{48})\b"),
    SecretRule("replicate_token", rb"\b(r8_[A-Za-z0-9]{37})\b"),
    SecretRule("xai_api_key", rb"\b(xai-[A-Za-z0-9]{80})\b"),
    SecretRule("linear_api_key", rb"\b(lin_(?:api|oauth)_[A-Za-z0-9]{32,})\b"),
    SecretRule("notion_token", rb"\b(ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{43})\b", 3.0),
    SecretRule("airtable_token", rb"\b(pat[A-Za-z0-9]{14}\.[0-9a-f]{64})\b"),
    SecretRule("figma_token", rb"\b(fig[dour]_[A-Za-z0-9_-]{40,})"),
    SecretRule("dropbox_token", rb"\b(sl\.(?:u\.)?[A-Za-z0-9_-]{130,})"),
    SecretRule("mapbox_secret_token", rb"\b(sk\.eyJ[A-Za-z0-9_-]{40,}\.[A-Za-z0-9_-]{20,})"),
    SecretRule("adafruit_io_key", rb"\b(aio_[A-Za-z0-9]{28})\b"),
)

_GENERAL = (
    SecretRule(
        "private_key",
        rb"("
        + _PEM
        + _PEM_LINE
        + rb"*(?:[A-Za-z-]+: [^\n\"\\]*"
        + _PEM_LINE
        + rb"+)*"
        + _PEM_BODY
        + rb"(?:[^\"'`\[]*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?)",
    ),
    SecretRule("putty_private_key", rb"Private-Lines: \d+" + _PEM_LINE + rb"+(" + _PEM_BODY + rb")"),
    SecretRule("jwt", rb"\b(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"),
    SecretRule(
        "jwe", rb"\b(eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,})"
    ),
    SecretRule(
        "basic_auth_url", rb"(?i)[a-z][a-z0-9+.-]*://[^\s/?#:@\"'`<>\\]*:([^\s/?#@\"'`<>\\]{3,})@", 0.0, _PLACEHOLDER
    ),
    SecretRule("authorization_bearer", rb"(?i)\bbearer[\"']?\s{1,3}[\"']?([A-Za-z0-9._~+/-]{20,}=*)", 3.5, _ORDINARY),
    SecretRule("authorization_basic", rb"(?i)\bauthorization" + _IS + rb"basic\s{1,3}([A-Za-z0-9+/]{12,}={0,2})", 2.5),
    SecretRule(
        "generic_password",
        rb"(?i)(?:password|passwd|passphrase|pwd)"
        + _SUFFIX
        + rb"(?:"
        + _IS
        + rb"|>|\s{1,3}(?:is|-)\s{1,3})([^\s\"'`,;<>(){}\[\]\\|]{8,128})"
        + _END,
        2.75,
        _ORDINARY,
    ),
    SecretRule(
        "password_option",
        rb"\s--(?:password|passwd|token|api-key|secret)[ =][\"']?([^\s\"'`,;<>(){}\[\]\\|]{8,128})" + _END,
        2.75,
        _ORDINARY,
    ),
    SecretRule(
        "generic_api_key",
        rb"(?i)"
        + _NAME
        + rb"(?:secret|token|credential|(?:api|access|auth|private|encryption|signing|master|service|account)[_.-]?key)"
        + _SUFFIX
        + _IS
        + rb"([A-Za-z0-9_.+/=~!@#$%^*:-]{16,512})"
        + _END,
        3.0,
        _ORDINARY + _IDENTIFIER,
    ),
)

RULES = (*_CLOUDS, *_CODE_AND_PACKAGES, *_INFRASTRUCTURE, *_SERVICES, *_GENERAL)
