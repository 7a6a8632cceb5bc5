/** Every word of the page, in Bokmål, Nynorsk and English. {name} is filled in; _one and _other are chosen by number. */

/** @typedef {"nb" | "nn" | "en"} Language */

const nb = {
  appName: "Borealis", skip: "Hopp til skrivefeltet", conversations: "Samtaler", newConversation: "Ny samtale",
  untitled: "Ny samtale", conversation: "Samtale", openMenu: "Vis samtaler", closeMenu: "Skjul samtaler",
  rename: "Gi nytt navn", renameThis: "Gi «{title}» nytt navn", deleteThis: "Slett «{title}»",
  title: "Navn", delete: "Slett", cancel: "Avbryt", save: "Lagre", close: "Lukk", ok: "OK",
  deleteConversation: "Slette samtalen?", deleteConversationText: "«{title}» blir borte for godt.",
  language: "Språk", theme: "Utseende", themeAuto: "Som systemet", themeLight: "Lyst", themeDark: "Mørkt",
  settings: "Innstillinger", connecting: "Kobler til …", sees: "ser bilder", context: "{n} tokener kontekst",
  noModel: "Ingen modell", retry: "Prøv igjen",
  greeting: "Hva har du på hjertet?", greetingText: "Samtalene lagres bare i denne nettleseren.",
  input: "Melding", placeholder: "Skriv en melding", attach: "Legg ved bilder", send: "Send", stop: "Stopp svaret",
  hint: "Enter sender, Shift+Enter gir ny linje, Esc stopper", drop: "Slipp bildene her",
  attached: "Vedlagte bilder", removePicture: "Fjern {name}", picture: "Bilde", pictureGone: "Bildet er ikke lenger lagret.",
  notPicture: "{name} er ikke et bilde som nettleseren kan lese. Bruk PNG eller JPEG.",
  cannotSee: "Modellen kan ikke se bilder. Start serveren med en modell som har en mmproj-fil.",
  picturesLeftOut: "Bildene i samtalen ble ikke sendt: modellen kan ikke se.",
  you: "Du", system: "Systeminstruks", copy: "Kopier", copied: "Kopiert", copyMessage: "Kopier meldingen",
  edit: "Rediger og send på nytt", editing: "Rediger meldingen", sendAgain: "Send på nytt", regenerate: "Lag svaret på nytt",
  deleteMessage: "Slett meldingen", code: "Kode", table: "Tabell", toBottom: "Til det nyeste",
  thinking: "Venter på svar …", thinkingFor: "Venter på svar … {n} s", waiting: "Serveren er opptatt. Prøver igjen om {n} s.",
  stopped: "Stoppet.", interrupted: "Svaret ble avbrutt før det var ferdig.", tooLong: "Svaret nådde største lengde.",
  rate: "{n} tokener/s", firstAfter: "{n} s til første", tokens_one: "{n} token", tokens_other: "{n} tokener",
  contextUsed: "{n} av {of} i konteksten",
  answerDone: "Borealis svarte: {text}", answerStarted: "Borealis svarer.",
  problem_network: "Får ikke kontakt med serveren. Kjører den fortsatt?",
  problem_dropped: "Forbindelsen ble brutt før svaret var ferdig.",
  problem_key: "Serveren godtok ikke API-nøkkelen.",
  problem_context: "Samtalen er for lang for modellens kontekst. Slett meldinger, skriv kortere eller begynn en ny samtale.",
  problem_loading: "Modellen lastes inn. Det kan ta et par minutter.",
  problem_busy: "Serveren er fortsatt opptatt.", problem_server: "Serveren meldte en feil.",
  keyTitle: "API-nøkkel", keyText: "Serveren krever en nøkkel. Den glemmes når fanen lukkes.", key: "Nøkkel",
  storageFull: "Nettleserens lager er fullt: det siste i samtalen er ikke lagret. Slett gamle samtaler for å få plass.",
  conversationGone: "Samtalen ble slettet i en annen fane.",
  systemHint: "Hvordan modellen skal svare i denne samtalen. Gjelder fra neste svar.", systemDefault: "Bruk også i nye samtaler",
  sampling: "Hvordan svar lages", samplingHint: "Tomme felt bruker modellens egne verdier.", reset: "Tøm feltene",
  temperature: "Temperatur", temperatureHint: "Fra 0 til 2. Lav gir forutsigbare svar, høy gir mer varierte.",
  top_p: "Top-p", top_pHint: "Fra 0 til 1. Bare de mest sannsynlige ordene, til de sammen har denne sannsynligheten.",
  top_k: "Top-k", top_kHint: "Bare så mange av de mest sannsynlige ordene. 0 tar med alle.",
  max_tokens: "Lengste svar", max_tokensHint: "I tokener. Et norsk ord er ofte ett til to tokener.",
  seed: "Frø", seedHint: "Et heltall. Samme frø og samme spørsmål gir samme svar.",
  badNumber: "Skriv et tall fra {min} til {max}.", badInteger: "Skriv et heltall fra {min} til {max}.",
};

/** @type {typeof nb} */
const nn = {
  appName: "Borealis", skip: "Hopp til skrivefeltet", conversations: "Samtalar", newConversation: "Ny samtale",
  untitled: "Ny samtale", conversation: "Samtale", openMenu: "Vis samtalar", closeMenu: "Gøym samtalar",
  rename: "Gi nytt namn", renameThis: "Gi «{title}» nytt namn", deleteThis: "Slett «{title}»",
  title: "Namn", delete: "Slett", cancel: "Avbryt", save: "Lagre", close: "Lukk", ok: "OK",
  deleteConversation: "Slette samtalen?", deleteConversationText: "«{title}» blir borte for godt.",
  language: "Språk", theme: "Utsjånad", themeAuto: "Som systemet", themeLight: "Lys", themeDark: "Mørk",
  settings: "Innstillingar", connecting: "Koplar til …", sees: "ser bilete", context: "{n} token kontekst",
  noModel: "Ingen modell", retry: "Prøv igjen",
  greeting: "Kva har du på hjartet?", greetingText: "Samtalane blir berre lagra i denne nettlesaren.",
  input: "Melding", placeholder: "Skriv ei melding", attach: "Legg ved bilete", send: "Send", stop: "Stopp svaret",
  hint: "Enter sender, Shift+Enter gir ny linje, Esc stoppar", drop: "Slepp bileta her",
  attached: "Vedlagde bilete", removePicture: "Fjern {name}", picture: "Bilete", pictureGone: "Biletet er ikkje lenger lagra.",
  notPicture: "{name} er ikkje eit bilete som nettlesaren kan lese. Bruk PNG eller JPEG.",
  cannotSee: "Modellen kan ikkje sjå bilete. Start tenaren med ein modell som har ei mmproj-fil.",
  picturesLeftOut: "Bileta i samtalen vart ikkje sende: modellen kan ikkje sjå.",
  you: "Du", system: "Systeminstruks", copy: "Kopier", copied: "Kopiert", copyMessage: "Kopier meldinga",
  edit: "Rediger og send på nytt", editing: "Rediger meldinga", sendAgain: "Send på nytt", regenerate: "Lag svaret på nytt",
  deleteMessage: "Slett meldinga", code: "Kode", table: "Tabell", toBottom: "Til det nyaste",
  thinking: "Ventar på svar …", thinkingFor: "Ventar på svar … {n} s", waiting: "Tenaren er oppteken. Prøver igjen om {n} s.",
  stopped: "Stoppa.", interrupted: "Svaret vart avbrote før det var ferdig.", tooLong: "Svaret nådde største lengd.",
  rate: "{n} token/s", firstAfter: "{n} s til første", tokens_one: "{n} token", tokens_other: "{n} token",
  contextUsed: "{n} av {of} i konteksten",
  answerDone: "Borealis svara: {text}", answerStarted: "Borealis svarar.",
  problem_network: "Får ikkje kontakt med tenaren. Køyrer han framleis?",
  problem_dropped: "Sambandet vart brote før svaret var ferdig.",
  problem_key: "Tenaren godtok ikkje API-nøkkelen.",
  problem_context: "Samtalen er for lang for konteksten til modellen. Slett meldingar, skriv kortare eller begynn ein ny samtale.",
  problem_loading: "Modellen blir lasta inn. Det kan ta eit par minutt.",
  problem_busy: "Tenaren er framleis oppteken.", problem_server: "Tenaren melde ein feil.",
  keyTitle: "API-nøkkel", keyText: "Tenaren krev ein nøkkel. Han blir gløymd når fana blir lukka.", key: "Nøkkel",
  storageFull: "Lageret i nettlesaren er fullt: det siste i samtalen er ikkje lagra. Slett gamle samtalar for å få plass.",
  conversationGone: "Samtalen vart sletta i ei anna fane.",
  systemHint: "Korleis modellen skal svare i denne samtalen. Gjeld frå neste svar.", systemDefault: "Bruk òg i nye samtalar",
  sampling: "Korleis svar blir laga", samplingHint: "Tomme felt bruker verdiane til modellen sjølv.", reset: "Tøm felta",
  temperature: "Temperatur", temperatureHint: "Frå 0 til 2. Låg gir føreseielege svar, høg gir meir varierte.",
  top_p: "Top-p", top_pHint: "Frå 0 til 1. Berre dei mest sannsynlege orda, til dei saman har dette sannsynet.",
  top_k: "Top-k", top_kHint: "Berre så mange av dei mest sannsynlege orda. 0 tek med alle.",
  max_tokens: "Lengste svar", max_tokensHint: "I token. Eit norsk ord er ofte eitt til to token.",
  seed: "Frø", seedHint: "Eit heiltal. Same frø og same spørsmål gir same svar.",
  badNumber: "Skriv eit tal frå {min} til {max}.", badInteger: "Skriv eit heiltal frå {min} til {max}.",
};

/** @type {typeof nb} */
const en = {
  appName: "Borealis", skip: "Skip to the message field", conversations: "Conversations", newConversation: "New conversation",
  untitled: "New conversation", conversation: "Conversation", openMenu: "Show conversations", closeMenu: "Hide conversations",
  rename: "Rename", renameThis: "Rename “{title}”", deleteThis: "Delete “{title}”",
  title: "Name", delete: "Delete", cancel: "Cancel", save: "Save", close: "Close", ok: "OK",
  deleteConversation: "Delete this conversation?", deleteConversationText: "“{title}” will be gone for good.",
  language: "Language", theme: "Appearance", themeAuto: "Like the system", themeLight: "Light", themeDark: "Dark",
  settings: "Settings", connecting: "Connecting …", sees: "sees images", context: "{n} tokens of context",
  noModel: "No model", retry: "Try again",
  greeting: "What is on your mind?", greetingText: "Conversations are stored in this browser only.",
  input: "Message", placeholder: "Write a message", attach: "Attach images", send: "Send", stop: "Stop the answer",
  hint: "Enter sends, Shift+Enter makes a new line, Esc stops", drop: "Drop the images here",
  attached: "Attached images", removePicture: "Remove {name}", picture: "Image", pictureGone: "The image is no longer stored.",
  notPicture: "{name} is not an image that the browser can read. Use PNG or JPEG.",
  cannotSee: "This model cannot see images. Start the server with a model that has an mmproj file.",
  picturesLeftOut: "The images of this conversation were not sent: the model cannot see.",
  you: "You", system: "System prompt", copy: "Copy", copied: "Copied", copyMessage: "Copy the message",
  edit: "Edit and send again", editing: "Edit the message", sendAgain: "Send again", regenerate: "Answer again",
  deleteMessage: "Delete the message", code: "Code", table: "Table", toBottom: "To the latest",
  thinking: "Waiting for the answer …", thinkingFor: "Waiting for the answer … {n} s", waiting: "The server is busy. Trying again in {n} s.",
  stopped: "Stopped.", interrupted: "The answer was interrupted before it was finished.", tooLong: "The answer reached the greatest length.",
  rate: "{n} tokens/s", firstAfter: "{n} s to the first", tokens_one: "{n} token", tokens_other: "{n} tokens",
  contextUsed: "{n} of {of} in context",
  answerDone: "Borealis answered: {text}", answerStarted: "Borealis is answering.",
  problem_network: "The server cannot be reached. Is it still running?",
  problem_dropped: "The connection broke before the answer was finished.",
  problem_key: "The server did not accept the API key.",
  problem_context: "The conversation is too long for the model's context. Delete messages, write less, or begin a new conversation.",
  problem_loading: "The model is being loaded. That can take a few minutes.",
  problem_busy: "The server is still busy.", problem_server: "The server reported an error.",
  keyTitle: "API key", keyText: "The server asks for a key. It is forgotten when this tab is closed.", key: "Key",
  storageFull: "The browser's storage is full: the latest part of this conversation is not saved. Delete old conversations to make room.",
  conversationGone: "The conversation was deleted in another tab.",
  systemHint: "How the model should answer in this conversation. Holds from the next answer on.", systemDefault: "Use for new conversations too",
  sampling: "How answers are made", samplingHint: "Empty fields use the model's own values.", reset: "Empty the fields",
  temperature: "Temperature", temperatureHint: "From 0 to 2. Low makes answers predictable, high makes them more varied.",
  top_p: "Top-p", top_pHint: "From 0 to 1. Only the likeliest words, until together they have this probability.",
  top_k: "Top-k", top_kHint: "Only this many of the likeliest words. 0 means all of them.",
  max_tokens: "Longest answer", max_tokensHint: "In tokens. A Norwegian word is often one or two tokens.",
  seed: "Seed", seedHint: "A whole number. The same seed and the same question give the same answer.",
  badNumber: "Write a number from {min} to {max}.", badInteger: "Write a whole number from {min} to {max}.",
};

/** @type {Record<Language, typeof nb>} */
export const TEXTS = { nb, nn, en };

/** @type {Language} */
let language = "en";

/** @param {readonly string[]} wanted as in navigator.languages @returns {Language} the first that the page speaks */
export function chooseLanguage(wanted) {
  for (const tag of wanted) {
    const name = tag.toLowerCase().split("-")[0];
    if (name === "nb" || name === "no") return "nb";
    if (name === "nn" || name === "en") return name;
  }
  return "en";
}

/** @param {Language} chosen */
export function setLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
}

/** @param {string} key @param {Record<string, string | number>} [values] @returns {string} */
export function t(key, values = {}) {
  const text = TEXTS[language][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** @param {string} key @param {number} count */
export function plural(key, count) {
  const form = new Intl.PluralRules(language).select(count) === "one" ? "one" : "other";
  return t(`${key}_${form}`, { n: number(count) });
}

/** @param {number} value @param {number} [digits] after the decimal sign */
export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Fills in what index.html leaves to us: data-text is a content, data-label a name, data-hint a placeholder. */
export function fillIn(root = document) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t(node.dataset.label));
    if (node.localName === "button") node.title = t(node.dataset.label);
  }
  for (const node of root.querySelectorAll("[data-hint]")) node.placeholder = t(node.dataset.hint);
}
