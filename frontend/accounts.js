"use strict";
/* People with accounts, by Supabase Auth: its own client keeps, renews and ends the session. `make page` bundles it. */

const Accounts = (() => {
  const BUNDLE = "vendor/supabase-auth.js";

  let client = null;
  let session = null; // Supabase's: {access_token, user}
  let tell = () => {}; // called with each new token

  /** Find out whether somebody is signed in already, or comes back from a provider or a link. */
  async function start({ supabase_url: url, supabase_publishable_key: key }) {
    if (client) return;
    await load();
    client = new SupabaseAuth.AuthClient({
      url: `${url}/auth/v1`,
      headers: { apikey: key },
      storageKey: "realtime-account",
      flowType: "pkce",
      detectSessionInUrl: true,
    });
    const { data } = await client.getSession();
    session = data.session;
    client.onAuthStateChange((event, next) => {
      const isNew = next && next.access_token !== session?.access_token;
      session = next;
      if (isNew) tell(next.access_token);
    });
  }

  function load() {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = BUNDLE;
      script.onload = resolve;
      script.onerror = () => reject(new Error("This page cannot sign people in: its server was set up without `make page`."));
      document.head.append(script);
    });
  }

  /** Sign in with what the form has, or make an account: an error's words, or "" where somebody is signed in now. */
  async function enter(how, { email, password }) {
    const here = location.origin + location.pathname;
    const calls = {
      password: () => client.signInWithPassword({ email, password }),
      create: () => client.signUp({ email, password, options: { emailRedirectTo: here } }),
      link: () => client.signInWithOtp({ email, options: { emailRedirectTo: here } }),
    };
    const known = Object.hasOwn(calls, how);
    const { data, error } = await (known
      ? calls[how]()
      : client.signInWithOAuth({ provider: how, options: { redirectTo: here } }));
    if (error) return error.message;
    session = data.session ?? session;
    return session ? "" : "Look into your mail: the link in it signs you in.";
  }

  async function renew() {
    const { data } = await client.refreshSession();
    session = data.session ?? session;
    return session?.access_token ?? null;
  }

  async function leave() {
    await client?.signOut({ scope: "local" });
    session = null;
  }

  return {
    start, enter, renew, leave,
    token: () => session?.access_token ?? null,
    name: () => (session ? session.user?.email || "as a guest" : null),
    id: () => session?.user?.id ?? null,
    onToken: (listener) => {
      tell = listener;
    },
  };
})();
