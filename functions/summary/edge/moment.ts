/**
 * Moments to the microsecond, as PostgreSQL and Python keep them. A `Date` holds only milliseconds, and would make a
 * session's end differ from the one that the Lambda writes.
 */

/** Microseconds since 1970 in UTC. */
export type Moment = bigint;

const RFC_3339 =
  /^(\d{4}-\d\d-\d\d)[Tt ]([01]\d|2[0-3])(:[0-5]\d:[0-5]\d)(?:\.(\d+))?(?:[Zz]|([+-])([01]\d|2[0-3]):?([0-5]\d))$/;
const LAST: Moment = 253_402_300_799_999_999n;

/** The moment this text names, or null if it names none. It must carry its UTC offset. */
export function parseMoment(text: string): Moment | null {
  const parts = RFC_3339.exec(text);
  if (!parts) return null;
  const [, day, hour, rest, fraction = "", sign, offsetHours = "0", offsetMinutes = "0"] = parts;
  const midnight = new Date(`${day}T00:00:00Z`);
  // A `Date` turns 30 February into 2 March, and accepts the year 0.
  const named = Number.isNaN(midnight.getTime()) ? "" : midnight.toISOString().slice(0, 10);
  if (named !== day || day.startsWith("0000")) return null;
  const milliseconds = BigInt(Date.parse(`${day}T${hour}${rest}Z`));
  const offset = BigInt(Number(offsetHours) * 60 + Number(offsetMinutes)) * 60_000_000n * (sign === "-" ? -1n : 1n);
  const local = milliseconds * 1000n + micros(fraction);
  return local > LAST ? null : local - offset;
}

/** A time as PostgREST writes it, or as PostgreSQL does: with a space, and with an offset in whole hours. */
export function storedMoment(text: string): Moment {
  const moment = parseMoment(text.replace(/([+-]\d\d)$/, "$1:00"));
  if (moment === null) throw new TypeError("the store's time cannot be read");
  return moment;
}

/** The moment in ISO 8601, in UTC, with all six digits. */
export function formatMoment(moment: Moment): string {
  const fraction = ((moment % 1_000_000n) + 1_000_000n) % 1_000_000n;
  const seconds = new Date(Number((moment - fraction) / 1000n)).toISOString().slice(0, -5);
  return `${seconds}.${fraction.toString().padStart(6, "0")}+00:00`;
}

/** The fraction's first six digits, rounded by the seventh. */
function micros(fraction: string): bigint {
  return BigInt(fraction.slice(0, 6).padEnd(6, "0")) + (fraction.charAt(6) >= "5" ? 1n : 0n);
}
