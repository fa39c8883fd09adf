// Supabase's own client, as a page has it: signs somebody up or in, and reads what row-level security lets them.
// Usage: node supabase_user.mjs <url> <publishable key> <email> <read | sign-in>
import { createClient } from "@supabase/supabase-js";

const [url, key, email, what] = process.argv.slice(2);
const password = "correct horse battery";
const client = createClient(url, key, {
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: class {} }, // it is not used, and Node 20 has no WebSocket of its own
});

const { auth } = client;
let answer = await auth.signUp({ email, password });
if (answer.error) answer = await auth.signInWithPassword({ email, password });
if (answer.error) throw answer.error;

const said = { token: answer.data.session.access_token, user_id: answer.data.user.id };
if (what === "read") {
  const sessions = await client.from("sessions").select("session_id").order("session_id");
  const events = await client.from("events").select("event_id").order("id");
  if (sessions.error || events.error) throw sessions.error ?? events.error;
  Object.assign(said, { sessions: sessions.data, events: events.data });
}
console.log(JSON.stringify(said));
