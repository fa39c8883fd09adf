/* What the page needs of Supabase's own client: `make page` bundles it into vendor/supabase-auth.js. */
export { AuthClient } from "@supabase/auth-js";
