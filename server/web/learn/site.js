// The lessons without a server: the page of a copy that docs/learn_site.py writes.
import { fetchRecorded } from "./recorded.js";
import { mount } from "./view.js";

const { signal } = new AbortController();
mount(document.getElementById("lessons"), { fetchJson: fetchRecorded, signal, hasServer: false });
