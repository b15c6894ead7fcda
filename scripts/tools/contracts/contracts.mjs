// Checks of specs/asyncapi.yaml with the AsyncAPI project's own parser and diff.
//
//   contracts.mjs valid FILE            parse the document; any error or warning of the parser fails
//   contracts.mjs breaking BEFORE AFTER  compare two documents; a change that breaks a subscriber or an agent fails
//   contracts.mjs selfcheck FILE        show that `breaking` finds breaking changes, and lets others pass
//
// CONTRACT_TOOLS is the folder of the installed packages.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.env.CONTRACT_TOOLS, 'package.json'));
const { Parser } = require('@asyncapi/parser');
const { diff } = require('@asyncapi/diff');

// Of what the parser says, the advice to move to another version of AsyncAPI is no fault.
const ADVICE = new Set(['asyncapi-latest-version']);
const WARNING = 1;
// Keys that say nothing about the messages themselves.
const SILENT = /^(description|summary|title|examples|tags|x-parser-.*)$/;
// Keywords whose arrays are sets: an element is added or removed, whatever its place.
const SETS = new Set(['required', 'enum', 'type']);

async function parsed(text) {
  const { document, diagnostics } = await new Parser().parse(text);
  const faults = diagnostics.filter((one) => one.severity <= WARNING && !ADVICE.has(one.code));
  return { document, faults };
}

// The document with its references resolved, its sets as objects, and without texts for people. `isMap`: the keys of the
// node are names of fields and no keywords.
function comparable(node, key = '', isMap = false) {
  if (SETS.has(key)) return Object.fromEntries([node].flat().map((value) => [JSON.stringify(value), true]));
  if (Array.isArray(node)) return node.map((value) => comparable(value));
  if (node === null || typeof node !== 'object') return node;
  const kept = Object.entries(node).filter(([name]) => isMap || !SILENT.test(name));
  return Object.fromEntries(
    kept.map(([name, value]) => [name, isMap ? comparable(value) : comparable(value, name, name === 'properties')]),
  );
}

// By channel: `send` for what the engine publishes, `receive` for what it reads.
function directions(document) {
  const found = {};
  for (const [name, channel] of Object.entries(document.channels)) {
    const operations = Object.values(document.operations);
    const uses = operations.filter((one) => one.channel['x-parser-unique-object-id'] === name || one.channel === channel);
    found[name] = uses.length ? uses[0].action : undefined;
  }
  return found;
}

// Whether a change within a message breaks its reader: the subscriber of what is sent, the engine for what it receives.
// A reader ignores fields that it does not know, so a new field breaks nobody.
function breaks(action, path, direction) {
  if (path.at(-2) === 'properties') return action === 'remove';
  const isSent = direction === 'send';
  if (path.at(-2) === 'required') return isSent ? action === 'remove' : action === 'add';
  if (['enum', 'type', 'anyOf', 'oneOf'].includes(path.at(-2))) return isSent || action === 'remove';
  // Any other keyword restricts: more of them bind the sender, fewer of them surprise the reader.
  return action === 'edit' || action === (isSent ? 'remove' : 'add');
}

function breakingChanges(before, after) {
  const [old, now] = [before.json(), after.json()];
  const direction = directions(old);
  const found = diff(comparable(old), comparable(now)).getOutput().changes;
  return found.filter((change) => isBreaking(change, direction)).map(({ action, path }) => `${action} ${path}`);
}

// What the tool knows is breaking, and what it has no rule for: the schemas of messages, which it sees at each channel.
function isBreaking({ type, action, path }, direction) {
  const [root, channel, messages, , part, ...rest] = path.split('/').slice(1);
  if (root === 'components' || (root === 'operations' && messages === 'channel')) return false; // seen at the channels
  if (root !== 'channels' || messages !== 'messages' || !['payload', 'headers'].includes(part)) return type === 'breaking';
  return rest.length ? breaks(action, rest, direction[channel]) : action !== 'add';
}

async function load(path) {
  const { document, faults } = await parsed(readFileSync(path, 'utf8'));
  if (faults.length) throw new Error(faults.map((one) => `${path}: ${one.path.join('.')}: ${one.message}`).join('\n'));
  return document;
}

// Each changes the text of a document; true: the change breaks somebody.
const CHANGES = {
  'a field of an event is removed': [true, (d) => delete d.components.schemas.StepExecuted.properties.attempt],
  'a field of an event may be missing': [true, (d) => d.components.schemas.StepExecuted.required.shift()],
  'a field of an event has another type': [true, (d) => (d.components.schemas.StepExecuted.properties.attempt.type = 'string')],
  'an event has a new status': [true, (d) => d.components.schemas.StepExecuted.properties.status.enum.push('SKIPPED')],
  'the envelope loses a field': [true, (d) => delete d.components.schemas.Envelope.properties.producer],
  'a key has another form': [true, (d) => (d.components.schemas.EffectKey.pattern = '^.+$')],
  'the id is no header any more': [true, (d) => delete d.components.schemas.Headers.properties['Nats-Msg-Id']],
  'an event has another subject': [true, (d) => (d.channels.started.address = 'ceremony.begun')],
  'a channel is removed': [true, (d) => { delete d.channels.paused; delete d.operations.sendPaused; delete d.components.messages.Paused; delete d.components.schemas.Paused; }],
  'agents have to send more': [true, (d) => d.components.schemas.TaskExtraction.required.push('model')],
  'agents may not send a field any more': [true, (d) => delete d.components.schemas.AgentResponse.properties.trigger],
  'an event has one more field': [false, (d) => (d.components.schemas.StepExecuted.properties.duration_ms = { type: 'integer' })],
  'a field of an event is always there': [false, (d) => d.components.schemas.Resumed.required.push('step_id')],
  'agents have to send less': [false, (d) => d.components.schemas.TaskExtraction.required.pop()],
  'a description is improved': [false, (d) => (d.components.messages.Started.summary = 'It began.')],
  'an example is added': [false, (d) => d.components.messages.Started.examples?.push(d.components.messages.Started.examples[0])],
};

async function selfcheck(path) {
  const yaml = require('js-yaml');
  const text = readFileSync(path, 'utf8');
  const before = await load(path);
  for (const [what, [isBreaking, change]] of Object.entries(CHANGES)) {
    const changed = yaml.load(text);
    change(changed);
    const { document, faults } = await parsed(JSON.stringify(changed));
    if (!document) throw new Error(`${what}: no document any more: ${faults.map((one) => one.message)}`);
    const found = breakingChanges(before, document);
    if (isBreaking !== found.length > 0) throw new Error(`${what}: ${isBreaking ? 'was not found' : `breaks: ${found}`}`);
  }
  console.log(`contracts: ${Object.keys(CHANGES).length} changes are told apart`);
}

async function main([verb, ...paths]) {
  if (verb === 'valid') {
    const document = await load(paths[0]);
    console.log(`contracts: ${paths[0]} is valid: ${document.channels().all().length} channels`);
  } else if (verb === 'breaking') {
    const found = breakingChanges(await load(paths[0]), await load(paths[1]));
    if (found.length) throw new Error(`breaks those who rely on ${paths[0]}:\n${found.join('\n')}`);
    console.log(`contracts: ${paths[1]} breaks nobody who relies on ${paths[0]}`);
  } else if (verb === 'selfcheck') {
    await selfcheck(paths[0]);
  } else {
    throw new Error('contracts.mjs valid FILE | breaking BEFORE AFTER | selfcheck FILE');
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`contracts: ${error.message}`);
  process.exitCode = 1;
});
